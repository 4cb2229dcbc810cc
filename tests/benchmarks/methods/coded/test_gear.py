import pytest
import torch

from benchmarks.methods.coded.gear import GEAR, MODES
from benchmarks.methods.coded.low_rank import LowRank, rank_of
from benchmarks.methods.coded.outliers import Outliers
from benchmarks.methods.harness.interface import part
from tests.benchmarks.methods.stores import errors, layer, tokens

SMALL = {"group_size": 8, "left": 0.05, "streaming_gap": 8}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("mode", "quantizer"), [("GEARL", "KIVI_V2"), ("GEARL-KCVT", "KCVT"), ("GEAR-KCVT", "KCVT")])
def test_error_is_below_the_quantizers_alone(mode, quantizer, bits):
    x = tokens(64)
    ours, alone = (errors(GEAR(compress_mode=name, quantize_bit=bits, **SMALL), x) for name in (mode, quantizer))
    assert ours[0] < alone[0] and ours[1] < alone[1]


def test_an_outlier_does_not_cost_its_channel():
    x = tokens(64)
    x.keys[0, 7, 2] = 400.0
    found = {}
    for mode in ("GEAR-KCVT", "KCVT"):
        store = GEAR(compress_mode=mode, **SMALL | {"prefillrank": 0, "prefillrankv": 0}).store(layer())
        store.append(x)
        found[mode] = (store.read()[0] - x.keys)[0, :, 2].abs()
    assert found["GEAR-KCVT"].max() < found["KCVT"].max() / 20
    assert found["GEAR-KCVT"][7] == 0


def test_full_rank_error_leaves_rounding_only():
    x = tokens(64)
    assert max(errors(GEAR(compress_mode="GEARL-KCVT", prefillrank=16, prefillrankv=16, **SMALL), x)) < 0.01


def test_old_name_and_fraction_are_the_new_ones():
    old = GEAR(compress_mode="gear_batch", prefillrank=0.25, prefillrankv=0.25)
    new = GEAR(compress_mode="GEAR-KCVT", prefillrank=4, prefillrankv=4)
    assert errors(old, tokens(64)) == errors(new, tokens(64))
    assert [rank_of(rank, 64, 128) for rank in (0, 0.001, 0.5, 1, 7, 200)] == [0, 1, 32, 1, 7, 64]


@pytest.mark.parametrize("mode", MODES)
def test_streaming_gap_works_across_steps(mode):
    """Tokens wait in full precision until there are ``streaming_gap``, then are compressed once."""
    x, method = tokens(64 + 20), GEAR(compress_mode=mode, **SMALL)
    store = method.store(layer())
    store.append(part(x, slice(0, 64)))
    for done, at in enumerate(range(64, 84), start=1):
        store.append(part(x, slice(at, at + 1)))
        assert len(store.chunks) == 1 + done // 8
        assert store.buffer.keys.shape[1] == done % 8
        keys, values = store.read()
        assert keys.shape == values.shape == (2, at + 1, 16)
        newest = at + 1 - done % 8
        torch.testing.assert_close(keys[:, newest:], x.keys[:, newest : at + 1].half().float())
    assert (keys - x.keys).abs().max() < 8


def test_without_streaming_new_tokens_stay_as_they_are():
    x, method = tokens(64 + 20), GEAR(stream=False, **SMALL)
    store = method.store(layer())
    store.append(part(x, slice(0, 64)))
    store.append(part(x, slice(64, 84)))
    assert len(store.chunks) == 1 and store.buffer.keys.shape[1] == 20


def test_bytes_count_codes_outliers_indices_and_factors():
    store = GEAR(compress_mode="GEAR-KCVT", quantize_bit=4, left=0.1, prefillrank=2, prefillrankv=3).store(layer())
    store.append(tokens(40))
    keys = 32 * (40 // 2 + 4) + 32 * 2 * 2 * (1 + 2) + 2 * (40 + 16) * 2 * 2
    values = 40 * (32 // 2 + 4) + 40 * 1 * 2 * (1 + 2) + 2 * (40 + 16) * 3 * 2
    assert store.nbytes() == keys + values


def test_grouped_prompts_leave_their_rest_in_the_buffer():
    store = GEAR(compress_mode="GEAR", **SMALL).store(layer())
    store.append(tokens(45))
    assert store.buffer.keys.shape[1] == 5 and store.read()[0].shape[1] == 45


def test_power_iteration_finds_a_low_rank_matrix():
    x = torch.randn(2, 30, 3) @ torch.randn(2, 3, 16)
    torch.testing.assert_close(LowRank.of(x, 3, 3, torch.float32).read(), x, rtol=1e-3, atol=1e-3)


def test_outliers_are_the_extremes():
    x = torch.randn(3, 300)
    found = Outliers.extremes(x, 2, torch.float32)
    assert found.indices.dtype == torch.int16
    assert torch.equal(
        found.values.sort(-1).values, torch.cat([x.sort(-1).values[:, i] for i in ([0, 1], [298, 299])], -1)
    )
    filled = found.replaced(x, torch.zeros(3, 1))
    assert torch.equal(found.restored(filled), x) and (filled == 0).sum() == 12
    assert Outliers.beyond(x[0], 2.0, torch.float32).values.abs().min() > 2


def test_knobs_that_contradict_are_refused():
    for knobs in (
        {"compress_mode": "gear"},
        {"left": 1.0},
        {"loop": 0},
        {"compress_mode": "GEAR", "streaming_gap": 20},
    ):
        with pytest.raises(ValueError, match="."):
            GEAR(**knobs)
