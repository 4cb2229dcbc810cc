import pytest
import torch

from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.harness.interface import part
from tests.benchmarks.methods.stores import errors, layer, tokens

METHOD = KIVI(k_bits=2, v_bits=2, group_size=8, residual_length=16)


def grown(method, x, steps):
    store, start = method.store(layer()), 0
    for count in steps:
        store.append(part(x, slice(start, start + count)))
        start += count
    return store


@pytest.mark.parametrize("length", [5, 16, 40, 53])
def test_tails_are_what_is_published(length):
    x = tokens(length)
    store = grown(METHOD, x, [length])
    assert store.key_tail.shape[1] == length % 16
    assert store.value_tail.shape[1] == min(length, 16)
    keys, values = store.read()
    exact = length - length % 16
    torch.testing.assert_close(keys[:, exact:], x.keys[:, exact:].half().float())
    torch.testing.assert_close(values[:, -16:], x.values[:, -16:].half().float())
    assert exact == 0 or not torch.equal(keys[:, :exact], x.keys[:, :exact].half().float())


def test_bytes_are_codes_scales_minima_and_tails():
    store = grown(METHOD, tokens(40), [40])
    keys = 2 * 16 * (32 * 2 // 8 + 32 // 8 * 4) + 2 * 8 * 16 * 2
    values = 24 * (32 * 2 // 8 + 32 // 8 * 4) + 2 * 16 * 16 * 2
    assert store.nbytes() == keys + values


def test_what_is_quantized_never_changes_again():
    """However the tokens came: a prompt, or step by step."""
    x = tokens(60)
    store = grown(METHOD, x, [33])
    keys = store.read()[0][:, :32]
    for at in range(33, 60):
        store.append(part(x, slice(at, at + 1)))
        assert torch.equal(store.read()[0][:, :32], keys)
    for mine, other in zip(store.read(), grown(METHOD, x, [60]).read(), strict=True):
        assert torch.equal(mine, other)


def test_a_group_is_one_channel_of_its_own_tokens():
    """A change of one number changes its own group of keys only."""
    x = tokens(32)
    changed = x._replace(keys=x.keys.clone())
    changed.keys[1, 9, 3] += 50
    before, after = (grown(METHOD, y, [32]).read()[0] for y in (x, changed))
    other = torch.ones(2, 32, 16, dtype=torch.bool)
    other[1, 8:16, 3] = False
    assert torch.equal(before[other], after[other]) and not torch.equal(before, after)


def test_more_bits_are_closer():
    two, four = (errors(KIVI(k_bits=b, v_bits=b, group_size=8, residual_length=16), tokens(64)) for b in (2, 4))
    assert four[0] < two[0] / 2 and four[1] < two[1] / 2


def test_knobs_that_contradict_are_refused():
    with pytest.raises(ValueError, match="multiple of group_size"):
        KIVI(group_size=32, residual_length=48)
    with pytest.raises(ValueError, match="no groups of 64"):
        KIVI(group_size=64).store(layer())
