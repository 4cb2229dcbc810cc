"""transformers' cache holds the packed bytes, and reads the numbers that the specification gives back."""

import pytest
import torch
from torch.testing import assert_close

from palu_vllm.format.checkpoint import read_config
from palu_vllm.format.packing import unpack
from tests.palu_vllm.huggingface.oracle import EXACT, generate, kv_bytes, load, logits
from tests.support.plain_svd import with_tiers

FORMATS = {
    "4_bits": ([(1.0, 4)], [(1.0, 4)]),
    "tiers": ([(0.5, 16), (0.5, 3)], [(0.5, 8), (0.5, 2)]),
    "groups": ([(1.0, 4)], [(1.0, 3)]),
}
CHANGES = {"groups": {"latent_group_size": 16}}


@pytest.fixture(params=FORMATS)
def packed(request, fused, tmp_path):
    return with_tiers(fused, tmp_path / "packed", *FORMATS[request.param], **CHANGES.get(request.param, {}))


def test_the_cache_holds_bytes(packed, tokens):
    _, palu, geometry = read_config(packed)
    cache = load(packed)(tokens).past_key_values
    assert {layer.keys.dtype for layer in cache.layers} == {torch.uint8}
    assert kv_bytes(cache) == tokens.numel() * palu.bytes_per_token(geometry, "float32")


def test_what_is_read_is_what_was_quantized(packed, fused, tokens):
    """In the first layer, whose inputs no quantization has touched, codes are those of the exact latents."""
    _, palu, _ = read_config(packed)
    exact, stored = (load(model)(tokens).past_key_values.layers[0] for model in (fused, packed))
    slot = palu.slot_format(0, "float32")
    for number, part, form in ((exact.keys, stored.keys, slot.key), (exact.values, stored.values, slot.value)):
        error = (unpack(part, form) - number).abs().amax(-1)
        spread = number.amax(-1) - number.amin(-1)
        assert (error <= 0.51 * spread / (2 ** form.tiers[-1].bits - 1) + 1e-3).all()


def test_with_and_without_cache_the_logits_are_equal(packed, tokens):
    model = load(packed)
    assert_close(logits(model, tokens, use_cache=False), logits(model, tokens, use_cache=True), **EXACT)
    assert torch.equal(generate(model, tokens), generate(model, tokens, use_cache=False))


def test_quantization_changes_the_logits(packed, fused, tokens):
    assert not torch.allclose(logits(load(packed), tokens), logits(load(fused), tokens), atol=1e-3)
