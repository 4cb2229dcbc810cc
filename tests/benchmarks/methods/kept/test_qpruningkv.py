import pytest
import torch

from benchmarks.methods.harness.interface import part
from benchmarks.methods.kept.qpruningkv import PRUNING, QPruningKV
from tests.benchmarks.methods.stores import errors, layer, tokens

every_pruning = pytest.mark.parametrize("method", [name for name in PRUNING if name != "LayerQuant"])
every_quantizer = pytest.mark.parametrize("quant_method", ["kivi", "kvquant"])


@every_pruning
@every_quantizer
@pytest.mark.parametrize("key_axis", [0, 1])
def test_it_is_the_pruning_methods_tokens_in_few_bits(method, quant_method, key_axis):
    x = tokens(64)
    knobs = {"max_capacity_prompts": 24, "group_size": 8, "key_axis": key_axis, "nbits": 8}
    store = QPruningKV(method=method, quant_method=quant_method, **knobs).store(layer(1))
    exact = PRUNING[method](max_capacity_prompts=24).store(layer(1, torch.float32))
    for each in (store, exact):
        each.append(part(x, slice(0, 60)))
        each.append(part(x, slice(60, 64)))
    for found, true in zip(store.read(), exact.read(), strict=True):
        torch.testing.assert_close(found, true, rtol=0.02, atol=0.25)
    assert store.nbytes() < exact.nbytes() / 2


@every_quantizer
def test_tokens_after_the_prompt_are_never_quantized(quant_method):
    x = tokens(64)
    store = QPruningKV(max_capacity_prompts=16, nbits=2, group_size=8, quant_method=quant_method).store(layer())
    store.append(part(x, slice(0, 40)))
    store.append(part(x, slice(40, 64)))
    for read, true in zip(store.read(), x[:2], strict=True):
        torch.testing.assert_close(read[:, 16:], true[:, 40:].half().float())


def test_outliers_above_the_threshold_are_exact_and_counted():
    x = tokens(16)
    knobs = {"max_capacity_prompts": 16, "nbits": 2, "group_size": 8}
    stores = [QPruningKV(quant_method=name, **knobs).store(layer()) for name in ("kivi", "kvquant")]
    for store in stores:
        store.append(x)
    above = x.keys.abs() > 6
    assert above.any() and torch.equal(stores[1].read()[0][above], x.keys[above].half().float())
    assert not torch.equal(stores[0].read()[0][above], x.keys[above].half().float())
    count = above.sum() + (x.values.abs() > 6).sum()
    assert stores[1].nbytes() - stores[0].nbytes() == count * (2 + 2)  # a float16 and an int16 index


def test_layers_of_layerquant_take_equal_bytes_of_codes():
    method = QPruningKV(
        method="LayerQuant",
        quant_method="layerquant",
        max_capacity_prompts=16,
        nbits=4,
        group_size=8,
        quant_layers_bits=8,
        quant_begin_layers=1,
        quant_end_layers=3,
    )
    counts, codes = [], []
    for index in range(4):
        store = method.store(layer(index))
        store.append(tokens(100))
        counts.append(store.read()[0].shape[1])
        codes.append(sum(part.packed.nbytes for part in store.inner.codes))
    assert counts == [64, 32, 32, 64] and len(set(codes)) == 1
    assert codes[0] == 2 * 2 * 16 * 16 * 2  # as many bytes as max_capacity_prompts tokens in 16 bits


def test_more_bits_are_closer():
    kept = {"max_capacity_prompts": 64, "group_size": 8}
    found = [sum(errors(QPruningKV(nbits=bits, **kept), tokens(64))) for bits in (2, 4, 8)]
    assert found[0] > 3 * found[1] > 9 * found[2]


def test_knobs_that_contradict_are_refused():
    for knobs in (
        {"method": "Quest"},
        {"quant_method": "hqq"},
        {"method": "LayerQuant"},
        {"key_axis": 2},
        {"nbits": 5},
        {"max_capacity_prompts": 4},
    ):
        with pytest.raises(ValueError, match="."):
            QPruningKV(**knobs)
