"""How decoding scores one layer's keys: whole keys rebuilt, or slow rotary pairs absorbed (``absorbed``).

Tiles for tensor cores are powers of two, at least 16 wide. The choice is made by the operations of padded tiles, and
absorption tiles are the tiles of the kernel.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.absorbed import (
    FLOAT32_TOLERANCE,
    WORTHWHILE,
    chebyshev,
    fit,
    known_frequencies,
    pairs_to_rebuild,
)
from palu_vllm.kernels.gpu.tiling import (
    MOST,
    SMALLEST_TILE,
    Device,
    Tiling,
    decode_tiling,
    half_tiles,
    padded,
    power_of_two,
)
from palu_vllm.kernels.interface import KeyRebuild

TERMS = (1, 2, 4, 8)
_plans = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class DecodePlan:
    """Tiles, and the constants of absorbed RoPE where slow pairs are absorbed."""

    tiling: Tiling
    basis: torch.Tensor | None = None  # [terms, tokens of a tile] float32
    coefficients: torch.Tensor | None = None  # [2, terms, slow pairs] float32: real, then imaginary parts

    def arguments(self, shape: LayerShape) -> dict[str, Any]:
        """What only the decode kernel takes, by name."""
        tiling = self.tiling
        return {
            "basis_ptr": self.basis,
            "coefficients_ptr": self.coefficients,
            "QUERIES": tiling.queries,
            "PARTS": tiling.parts,
            "HALF_TILES": tiling.half_tiles,
            "TILE_SLOW": tiling.slow,
            "TERMS": tiling.terms,
            "ROWS_PER_KV": rows_per_kv(shape, tiling),
        }


def rows_per_kv(shape: LayerShape, tiling: Tiling) -> int:
    return tiling.rows // power_of_two(shape.group_size // tiling.parts)


def columns(shape: LayerShape, tiling: Tiling) -> float:
    """Operations per token and group, in products of a latent with one column.

    Keys that are rebuilt, their products with all rows; with absorption, its products, and making u once per tile.
    """
    rebuilt = 2 * tiling.half * shape.group_size * (1 + tiling.rows / shape.rank_k)
    making = 2 * tiling.slow * rows_per_kv(shape, tiling) * shape.group_size / tiling.tokens
    return rebuilt + tiling.terms * (tiling.parts * tiling.rows + making)


def absorbing(
    frequencies: torch.Tensor, shape: LayerShape, tiling: Tiling, terms: int, tolerance: float
) -> DecodePlan | None:
    """``tiling`` with the pairs absorbed that ``terms`` terms give within ``tolerance``, in padded tiles.

    None where that leaves nothing to absorb, or tiles too small for tensor cores.
    """
    coefficients, errors = fit(frequencies.nan_to_num(), tiling.tokens, terms)
    fast = padded(pairs_to_rebuild(frequencies, errors, tolerance))
    if fast >= len(frequencies) or terms * rows_per_kv(shape, tiling) < SMALLEST_TILE:
        return None
    parts = torch.view_as_real(coefficients[:, fast:]).movedim(-1, 0)
    tiling = replace(
        tiling, half=fast, half_tiles=half_tiles(fast, tiling.pairs), slow=padded(len(frequencies) - fast), terms=terms
    )
    if shape.slot is not None and tiling.rank > MOST["several packed tiers"].rank:
        tiling = replace(tiling, num_stages=1)  # loading k_up ahead takes registers that unpacking needs
    return DecodePlan(tiling, chebyshev(tiling.tokens, terms).float(), parts.float().contiguous())


def tolerance_of(dtype: torch.dtype) -> float:
    """Half of what rounding to ``dtype`` does to a number at most: 2^-9 in bfloat16, 2^-12 in float16."""
    return max(torch.finfo(dtype).eps / 4, FLOAT32_TOLERANCE)


def plan_absorbed_tiles(
    frequencies: torch.Tensor, shape: LayerShape, tiling: Tiling, dtype: torch.dtype, device: Device
) -> DecodePlan:
    """The cheapest choice by ``columns``; whole keys are rebuilt unless another costs less than ``WORTHWHILE`` of that.

    ``frequencies`` float64 ``[head_dim / 2]``, NaN for pairs that must be rebuilt.
    """
    best, lowest = DecodePlan(tiling), WORTHWHILE * columns(shape, tiling)
    for terms in TERMS:
        plan = absorbing(frequencies, shape, tiling, terms, tolerance_of(dtype))
        if plan is None or plan.tiling.shared_memory(shape.rank_k, dtype.itemsize) > device.shared_memory:
            continue
        if columns(shape, plan.tiling) < lowest:
            best, lowest = plan, columns(shape, plan.tiling)
    return best


def decode_plan(shape: LayerShape, rebuild: KeyRebuild, queries: int, dtype: torch.dtype, device: Device) -> DecodePlan:
    """The plan for at most ``queries`` queries per request, constants on the device of the table of rotations.

    Found once for all the layers of one shape that share the table, which is read then and never again. Keys that are
    cached whole have nothing to absorb, and a norm needs the whole key.
    """
    cos_sin, has_key_norm = rebuild.cos_sin, rebuild.k_norm is not None
    absorbs = rebuild.k_up is not None and not has_key_norm
    known = _plans.setdefault(cos_sin, {})
    key = (shape, queries, dtype, device, absorbs, has_key_norm)
    if key not in known:
        tiling = decode_tiling(shape, dtype.itemsize, device, queries, has_key_norm)
        plan = DecodePlan(tiling)
        if absorbs:
            plan = plan_absorbed_tiles(known_frequencies(cos_sin, shape.head_dim), shape, tiling, dtype, device)
        if plan.basis is not None and plan.coefficients is not None:
            plan = DecodePlan(plan.tiling, plan.basis.to(cos_sin.device), plan.coefficients.to(cos_sin.device))
        known[key] = plan
    return known[key]
