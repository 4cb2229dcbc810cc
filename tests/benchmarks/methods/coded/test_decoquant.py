import pytest
import torch

from benchmarks.methods.coded.codes import per_token, read_per_token
from benchmarks.methods.coded.decoquant import DecoQuant, multiplied, small_factor
from benchmarks.methods.harness.interface import part
from tests.benchmarks.methods.stores import layer, tokens


def with_outlier_channels():
    """The first number of every run of 8 is a hundred times as large as the others, and always about the same."""
    x = tokens(60)
    values = x.values.clone()
    values[:, :, ::8] += 100
    return x._replace(keys=values, values=values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_is_below_the_quantizers_alone_where_channels_are_outliers(bits):
    x = with_outlier_channels()
    alone = read_per_token(per_token(x.values, bits, 32), 2) - x.values
    others = [channel for channel in range(16) if channel % 8]
    store = DecoQuant(bits=bits).store(layer(dtype=torch.float32))
    store.append(x)
    found = (store.read()[1] - x.values)[..., others].square().mean()
    assert found < alone[..., others].square().mean() / 4


def test_the_large_factor_has_an_even_range():
    x = with_outlier_channels().values
    small = small_factor(x, 8)
    large = multiplied(x, small.inverse())
    runs = large.reshape(-1, 8)
    torch.testing.assert_close(runs.mT @ runs / len(runs), torch.eye(8), atol=1e-2, rtol=0)
    torch.testing.assert_close(multiplied(large, small), x, atol=1e-3, rtol=1e-3)


def test_bytes_are_codes_scales_and_two_small_factors():
    store = DecoQuant(bits=4).store(layer())
    store.append(tokens(40))
    assert store.nbytes() == 2 * (40 * (32 // 2 + 4) + 8 * 8 * 2)


def test_later_tokens_are_written_in_the_prompts_small_factor():
    x, store = tokens(60), DecoQuant(bits=8).store(layer(dtype=torch.float32))
    store.append(part(x, slice(0, 50)))
    before, small = store.read()[0], store.factors[0].small
    for at in range(50, 60):
        store.append(part(x, slice(at, at + 1)))
    assert torch.equal(store.read()[0][:, :50], before) and store.factors[0].small is small
    for read, true in zip(store.read(), x[:2], strict=True):
        torch.testing.assert_close(read, true, atol=0.5, rtol=0.05)


def test_knobs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="bits is 5"):
        DecoQuant(bits=5)
    for knobs in ({"group_size": 64}, {"small_size": 5}):
        with pytest.raises(ValueError, match="are no"):
            DecoQuant(**knobs).store(layer())
