"""Latents mixed while they load: the tensors of a checkpoint that was cut and mixed on disk."""

from pathlib import Path

import pytest
import torch

from palu_vllm.format.checkpoint import attention_prefix, iterate_tensors, read_config
from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.loading.leading import leading_latents, ranks_at
from palu_vllm.loading.mixed import LayerMixing, mixed_latents
from tests.support.plain_svd import with_tiers
from tests.support.rotated import rotate
from tests.support.truncated import truncate

TIERS = [(0.5, 8), (0.5, 3)]
DENSE_BYTES = 2 * 2 * 4 * 32 * 4  # per token, of the tiny models in float32
CASES = {  # values or keys of a layer are stored whole in some
    "fused": ("llama", {"rank_k": (48, 40), "rank_v": (48, 64)}),
    "factored, biases": ("qwen2", {"rank_k": (48, 64), "rank_v": (48, 32), "value_path": "factored"}),
    "groups apart, norms": ("qwen3", {"rank_k": (24, 32), "rank_v": (96, 64), "group_size": (1, 4)}),
}


def asked_of(directory: Path, ratio: float) -> tuple[PaluConfig, PaluConfig, AttentionGeometry]:
    """What the files of a server hold that cuts and mixes, and what it serves."""
    config, palu, geometry = read_config(directory)
    rank_k, rank_v = ranks_at(palu, geometry, ratio * palu.bytes_per_token(geometry, "float32") / DENSE_BYTES)
    changes = {"rank_k": rank_k, "rank_v": rank_v, "hadamard": True}
    changes |= {f"tiers_{side}": [{"share": share, "bits": bits} for share, bits in TIERS] for side in "kv"}
    served = PaluConfig.from_hf_config(config | {"palu_config": config["palu_config"] | changes})
    return palu, served, geometry


def halves(rank: int) -> list[int]:
    """The tiers of ``TIERS``: the first ends at the multiple of 16 nearest to the middle."""
    first = min(rank, round(rank / 2 / 16) * 16)
    return [size for size in (first, rank - first) if size]


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_a_checkpoint_cut_and_mixed_on_disk(palu, tmp_path, case):
    family, options = CASES[case]
    directory = palu(family, **options)
    asked = asked_of(directory, 0.7)
    cut = truncate(directory, tmp_path / "cut", asked[1].rank_k, asked[1].rank_v)
    expected = dict(iterate_tensors(rotate(cut, tmp_path / "rotated", halves, [{"share": 1.0, "bits": 4}])))
    found = dict(mixed_latents(leading_latents(iterate_tensors(directory), *asked), *asked))
    assert found.keys() == expected.keys()
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in found.values())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)
    changed = [name for name, tensor in dict(iterate_tensors(cut)).items() if not torch.equal(tensor, found[name])]
    assert changed and all(".self_attn." in name and "q_proj" not in name for name in changed)


@pytest.mark.parametrize("case", CASES)
def test_products_do_not_change(palu, case):
    """Keys and what attention adds are those of the latents before."""
    family, options = CASES[case]
    directory = palu(family, **options)
    files, served, geometry = asked_of(directory, 0.7)
    before = dict(leading_latents(iterate_tensors(directory), files, served, geometry))
    after = dict(mixed_latents(iter(before.items()), files, served, geometry))
    groups = geometry.num_kv_heads // files.group_size_k
    for layer in range(geometry.num_layers):
        down, up = f"{attention_prefix(layer)}k_down.weight", f"{attention_prefix(layer)}k_up"
        if up not in before:
            assert torch.equal(before[down], after[down])
            continue
        keys = [tensors[up].mT @ tensors[down].unflatten(0, (groups, -1)) for tensors in (before, after)]
        torch.testing.assert_close(*keys, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(before[down], after[down])


def test_what_is_not_mixed_passes(palu, tmp_path):
    for directory in (palu(), with_tiers(palu(), tmp_path / "rotated", TIERS, TIERS, hadamard=True)):
        _, own, geometry = read_config(directory)
        pairs = zip(
            mixed_latents(iterate_tensors(directory), own, own, geometry), iterate_tensors(directory), strict=True
        )
        assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_stays(palu, dtype):
    directory = palu()
    own, _, geometry = asked_of(directory, 1.0)
    mixing = LayerMixing.of(own, geometry, 0)
    tensor = torch.randn(mixing.value.shape[0] * 3, 8).to(dtype)
    found = mixing("v_down.weight", tensor)
    assert found.dtype == dtype
    torch.testing.assert_close(mixing("v_down.weight", found).float(), tensor.float(), atol=0.05, rtol=0.05)
