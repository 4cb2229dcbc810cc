"""Positions are those of the cache's slots, padding on the left aside; others are refused."""

import pytest
import torch
from torch.testing import assert_close

from tests.palu_vllm.huggingface.oracle import EXACT, RANKS, generate, load, logits, truncated

REFUSED = "position_ids leave out or repeat positions, .* leave position_ids out"
PADDED = 14


@pytest.fixture
def padded(tokens):
    """The second row begins with padding; with the mask and the positions that ``generate`` makes."""
    mask = torch.ones_like(tokens)
    mask[1, :PADDED] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    return {"attention_mask": mask, "position_ids": positions}


@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_behind_padding_are_the_dense_models(base, fused, tokens, padded, use_cache):
    oracle, model = truncated(base / "qwen2", **RANKS), load(fused)
    found, expected = (logits(each, tokens, **padded, use_cache=use_cache) for each in (model, oracle))
    attended = padded["attention_mask"].bool()
    assert_close(found[attended], expected[attended], **EXACT)


def test_a_cache_goes_on_behind_padding(base, fused, tokens, padded):
    found = []
    for model in (load(fused), truncated(base / "qwen2", **RANKS)):
        first = {name: each[:, :20] for name, each in padded.items()}
        last = {"attention_mask": padded["attention_mask"], "position_ids": padded["position_ids"][:, 20:]}
        with torch.no_grad():
            cache = model(tokens[:, :20], **first).past_key_values
            found.append(model(tokens[:, 20:], **last, past_key_values=cache).logits)
    assert_close(*found, **EXACT)


def test_counted_slots_change_nothing(fused, tokens):
    model = load(fused)
    assert torch.equal(logits(model, tokens, position_ids=torch.arange(23)[None]), logits(model, tokens))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "positions",
    [torch.arange(23) + 5 * (torch.arange(23) >= 9), torch.arange(23) // 2, torch.arange(23) + 1],
    ids=["gap", "repeated", "from 1"],
)
def test_other_positions_are_refused(fused, tokens, positions, use_cache):
    options = {"use_cache": use_cache, "attention_mask": torch.ones_like(tokens)}
    with pytest.raises(ValueError, match=REFUSED):
        logits(load(fused), tokens, position_ids=positions.expand(2, -1), **options)


def test_a_gap_beside_a_finished_mask_is_refused(fused, tokens):
    causal = torch.ones(1, 1, 23, 23, dtype=torch.bool).tril()
    positions = (torch.arange(23) + 5 * (torch.arange(23) >= 9))[None]
    with pytest.raises(ValueError, match=REFUSED):
        logits(load(fused), tokens, attention_mask=causal, position_ids=positions)


def test_a_static_cache_goes_on_behind_padding(fused, tokens, padded):
    model, mask = load(fused), padded["attention_mask"]
    static = generate(model, tokens, attention_mask=mask, cache_implementation="static")
    assert torch.equal(static, generate(model, tokens, attention_mask=mask))


def test_a_gap_behind_a_cache_is_refused(fused, tokens):
    model = load(fused)
    cache = model(tokens).past_key_values
    with pytest.raises(ValueError, match=REFUSED):
        model(tokens[:, :1], past_key_values=cache, position_ids=torch.full((2, 1), 40))


def test_a_hole_in_the_mask_is_refused(fused, tokens):
    mask = torch.ones_like(tokens)
    mask[0, 9:12] = 0  # as after padding on the right
    with pytest.raises(ValueError, match=REFUSED):
        logits(load(fused), tokens, attention_mask=mask, position_ids=mask.cumsum(1) - 1)
