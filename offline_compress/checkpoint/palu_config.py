"""The ``palu_config`` of the output is made of a plan and the ranks that were chosen."""

from collections.abc import Sequence

import torch

from offline_compress.model.access import KEY, NORMS, projection
from offline_compress.plan import Plan
from offline_compress.run.provenance import tool_version
from palu_vllm.format.checkpoint import attention_tensors
from palu_vllm.format.config import DTYPE_BYTES, AttentionGeometry, PaluConfig, TierConfig
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import TierFractions


def palu_config(
    plan: Plan, ranks: Sequence[KV[int]], calibration: str, tiers: KV[TierFractions] | None = None
) -> PaluConfig:
    """With the value path chosen; ``ranks`` of every layer, ``tiers`` where the options do not say them."""
    options = plan.options
    found = tiers or KV(options.fractions_k, options.fractions_v)
    fused = PaluConfig(
        base_model=plan.source.name,
        base_revision=plan.source.revision,
        group_size_k=plan.groupings.key.size,
        group_size_v=plan.groupings.value.size,
        rank_k=[layer.key for layer in ranks],
        rank_v=[layer.value for layer in ranks],
        tiers_k=[TierConfig(share=fraction, bits=bits) for fraction, bits in found.key],
        tiers_v=[TierConfig(share=fraction, bits=bits) for fraction, bits in found.value],
        hadamard=plan.mixes(found),
        latent_group_size=options.latent_group_size,
        latent_symmetric=options.latent_symmetric,
        clip_k=plan.clip_ratios,
        clip_v=plan.clip_ratios,
        source_layers=None if plan.source_layers is None else list(plan.source_layers),
        value_path="fused",
        attention_bias=projection(0, KEY, "bias") in plan.source.tensors,
        qk_norm=projection(0, NORMS[KEY]) in plan.source.tensors,
        objective=options.objective,
        search=plan.search,
        calibration=calibration,
        seed=options.seed,
        tool_version=tool_version(),
    )
    return fused.model_copy(update={"value_path": _value_path(plan, fused)})


def _value_path(plan: Plan, palu: PaluConfig) -> str:
    if plan.options.value_path != "auto":
        return plan.options.value_path
    sizes = value_path_bytes(palu, plan.geometry, plan.dtype)
    return min(sizes, key=sizes.__getitem__)


def value_path_bytes(palu: PaluConfig, geometry: AttentionGeometry, dtype: str) -> dict[str, int]:
    """Bytes of what follows the value latents (``o_proj.weight`` and ``v_up``) for both value paths, all layers."""
    sizes = {}
    for path in ("factored", "fused"):
        shapes = attention_tensors(palu.model_copy(update={"value_path": path}), geometry)
        kept = [shape for name, shape in shapes.items() if name.endswith((".o_proj.weight", ".v_up"))]
        sizes[path] = sum(torch.Size(shape).numel() for shape in kept) * DTYPE_BYTES[dtype]
    return sizes
