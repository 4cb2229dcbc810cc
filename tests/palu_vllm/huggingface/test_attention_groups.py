"""Groups of K and V apart are groups of equal size whose factors have zeros: the same model, the same cache bytes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from palu_vllm.format.checkpoint import read_config
from tests.palu_vllm.huggingface.oracle import EXACT, kv_bytes, load, logits
from tests.support.plain_svd import build_palu, with_tiers

RANK = 16  # of every latent: scales of 16 numbers are then the same in both forms
APART = {"narrow_keys": ((2, 4), RANK, 3 * RANK), "narrow_values": ((4, 2), 3 * RANK, RANK)}


def with_zeros(apart: Path, out: Path) -> Path:
    """The same checkpoint with the larger group size for K and V; factored values."""
    config, palu, geometry = read_config(apart)
    tensors = load_file(apart / "model.safetensors")
    for side, size in (("k", palu.group_size_k), ("v", palu.group_size_v)):
        joined = palu.group_size // size
        config["palu_config"][f"rank_{side}"] = [joined * rank for rank in config["palu_config"][f"rank_{side}"]]
        for name in [name for name in tensors if name.endswith(f"{side}_up")]:
            groups = tensors[name].split(joined)
            tensors[name] = torch.stack([torch.block_diag(*group) for group in groups])
    config["palu_config"] |= {"group_size_k": palu.group_size, "group_size_v": palu.group_size}
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(params=APART)
def apart(request, base, tmp_path) -> Path:
    sizes, rank_k, rank_v = APART[request.param]
    return build_palu(base / "qwen2", tmp_path / "apart", rank_k, rank_v, sizes, value_path="factored")


def test_zeros_change_nothing(apart, tmp_path, tokens):
    equal = load(with_zeros(apart, tmp_path / "equal"))
    assert_close(logits(load(apart), tokens), logits(equal, tokens), **EXACT)


@pytest.mark.parametrize("bits", [4, 2])
def test_packed_latents_are_quantized_alike(apart, tmp_path, tokens, bits):
    """With a scale for every 16 numbers both forms store the same codes."""
    forms = apart, with_zeros(apart, tmp_path / "equal")
    packed = [with_tiers(form, tmp_path / f"{form.name}-packed", [(1.0, bits)], [(1.0, bits)], latent_group_size=RANK)
              for form in forms]  # fmt: skip
    assert_close(*(logits(load(form), tokens) for form in packed), **EXACT)
    assert not torch.allclose(logits(load(packed[0]), tokens), logits(load(apart), tokens), atol=1e-3)


@pytest.mark.parametrize("bits", [16, 4])
def test_the_cache_holds_the_bytes_of_every_group(apart, tmp_path, tokens, bits):
    packed = with_tiers(apart, tmp_path / "packed", [(1.0, bits)], [(1.0, bits)])
    _, palu, geometry = read_config(packed)
    assert kv_bytes(load(packed)(tokens).past_key_values) == tokens.numel() * palu.bytes_per_token(geometry, "float32")
