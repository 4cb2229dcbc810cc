"""Methods that keep some tokens; kvpress, which knows nothing of this code, is the oracle for scores."""

from types import SimpleNamespace

import pytest
import torch
from kvpress import ObservedAttentionPress, SnapKVPress

from benchmarks.methods.harness.interface import part
from benchmarks.methods.kept.h2o import H2O
from benchmarks.methods.kept.pyramidkv import PyramidKV
from benchmarks.methods.kept.snapkv import SnapKV
from benchmarks.methods.kept.streaming_llm import StreamingLLM
from tests.benchmarks.methods.stores import layer, tokens

METHODS = (
    StreamingLLM(max_capacity_prompts=20),
    H2O(max_capacity_prompts=20),
    SnapKV(max_capacity_prompts=20),
    PyramidKV(max_capacity_prompts=20),
)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def attentions(x):
    """Causal attention probabilities of every query head, ``[1, heads, queries, tokens]``."""
    scores = x.queries @ x.keys.repeat_interleave(2, 0).mT * 0.25
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)[None]


def module():
    return SimpleNamespace(config=SimpleNamespace(num_attention_heads=4, num_key_value_heads=2), head_dim=16)


@every_method
@pytest.mark.parametrize("length", [12, 20, 21, 36, 64])
def test_exactly_the_budget_is_kept(method, length):
    counts = []
    for index in range(4):
        store = method.store(layer(index))
        store.append(tokens(length))
        keys, values = store.read()
        assert keys.shape == values.shape
        counts.append(keys.shape[1])
    assert sum(counts) == 4 * min(length, 20)
    assert len(set(counts)) == 1 or method.name == "pyramidkv"


@every_method
def test_what_is_kept_is_unchanged_in_order_and_the_window_is_in_it(method):
    x = tokens(64)
    kept = method.kept(x, layer(1))
    assert (kept.positions.diff() > 0).all()
    assert torch.equal(kept.positions[:, -method.window :], x.positions[:, -method.window :])
    wide = kept.positions[..., None].expand(-1, -1, 16)
    assert torch.equal(kept.keys, x.keys.gather(1, wide)) and torch.equal(kept.values, x.values.gather(1, wide))


@every_method
def test_tokens_after_the_prompt_stay(method):
    x = tokens(70)
    store = method.store(layer(1, torch.float32))
    store.append(part(x, slice(0, 64)))
    kept = store.read()[0].shape[1]
    store.append(part(x, slice(64, 70)))
    assert torch.equal(store.read()[0][:, kept:], x.keys[:, 64:])
    assert store.nbytes() == 2 * 2 * (kept + 6) * 16 * 4


def test_streaming_llm_keeps_sinks_and_the_newest():
    kept = METHODS[0].kept(tokens(64), layer())
    assert torch.equal(kept.positions[0], torch.cat([torch.arange(4), torch.arange(48, 64)]))


def test_snapkv_scores_as_kvpress_does():
    x = tokens(64)
    ours = SnapKV(max_capacity_prompts=20, kernel_size=5, pooling="avgpool").scores(x, layer())
    press = SnapKVPress(window_size=8, kernel_size=5)
    theirs = press.score(module(), x.keys[0][None], x.keys[None], x.values[None], attentions(x), {})
    torch.testing.assert_close(ours / 8, theirs[0, :, :-8])  # theirs is a mean over queries


def test_h2o_scores_as_kvpress_does_before_its_mean():
    x = tokens(64)
    theirs = ObservedAttentionPress().score(module(), None, x.keys[None], x.values[None], attentions(x), {})
    seen_by = torch.arange(64, 0, -1)
    torch.testing.assert_close(METHODS[1].scores(x, layer()), (theirs[0] * seen_by)[:, :-8])


def test_long_prompts_are_scored_in_parts():
    """More queries than are scored at once."""
    x = tokens(600)
    theirs = ObservedAttentionPress().score(module(), None, x.keys[None], x.values[None], attentions(x), {})
    ours = METHODS[1].scores(x, layer())
    torch.testing.assert_close(ours, (theirs[0] * torch.arange(600, 0, -1))[:, :-8], rtol=1e-4, atol=1e-5)


def test_maxpool_keeps_the_neighbours_of_what_is_attended_to():
    x = tokens(64)
    keys = torch.zeros_like(x.keys)
    keys[:, 30] = 100 * x.queries[::2, -8:].mean(1)
    kept = SnapKV(max_capacity_prompts=15).kept(
        x._replace(keys=keys, queries=x.queries[:, -1:].expand(-1, 64, -1)), layer()
    )
    assert set(kept.positions[0, :7].tolist()) == set(range(27, 34))


@pytest.mark.parametrize("num_layers", [1, 2, 5, 32])
@pytest.mark.parametrize("length", [600, 800, 5000])
def test_pyramid_falls_and_has_the_mean_that_was_asked_for(num_layers, length):
    method = PyramidKV(max_capacity_prompts=512)
    counts = [method.capacity(length, layer(index, num_layers=num_layers)) for index in range(num_layers)]
    assert sum(counts) == 512 * num_layers
    assert counts == sorted(counts, reverse=True)
    assert all(8 <= count <= length for count in counts)
    if length == 5000 and num_layers > 1:
        assert counts[-1] == 8 + 504 // 20


def test_knobs_that_contradict_are_refused():
    for make, knobs in (
        (SnapKV, {"pooling": "mean"}),
        (SnapKV, {"kernel_size": 4}),
        (H2O, {"max_capacity_prompts": 8}),
        (PyramidKV, {"beta": 0}),
        (StreamingLLM, {"max_capacity_prompts": 4}),
    ):
        with pytest.raises(ValueError, match="."):
            make(**knobs)
