"""Scoring the slow rotary pairs of a key without rebuilding them: constants, their choice, and the specification.

Write rotary pair i of a key as the complex number ``b_i . c``, where c is the latent and b_i a column of ``k_up``.
Over a tile of S tokens from ``start`` on, its rotation is ``e^{i theta_i start} e^{i theta_i d}`` with d = 0 .. S - 1.
The first factor is one number per tile and moves to the query. The second is smooth in d where theta_i S is small: a
polynomial of few terms, ``sum_t C[t, i] phi_t(d)``, with the same Chebyshev basis for all pairs. Hence for query j
``score_j(d) = (fast pairs, rebuilt) + sum_t phi_t(d) (u[j, t] . c)`` with
``u[j, t] = Re sum_{i slow} conj(q_i) e^{i theta_i start} C[t, i] b_i``, rank_k numbers, once per tile and query.
``docs/concepts/absorbed-rope.md`` derives it. Numbers that are not rotated form pairs of frequency 0, the slowest. Keys
that are normalised after the rebuild are not scored like this.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.interface import KeyRebuild

FLOAT32_TOLERANCE = 1e-6  # about the rounding error of a rebuilt pair in float32
MOST_TERMS = 12
WORTHWHILE = 0.9  # of the operations of a full rebuild
ANGLE_ROUNDING = 2**-21  # relative: some roundings of position * frequency to float32
_frequencies = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Absorption:
    """How one layer's keys are scored over tiles of ``tile_tokens``: pairs before ``fast`` are rebuilt."""

    tile_tokens: int
    fast: int
    basis: torch.Tensor  # [terms, tile_tokens] float32
    coefficients: torch.Tensor  # [terms, pairs - fast] complex64


def as_pairs(x: torch.Tensor, rotary_dim: int | None = None) -> torch.Tensor:
    """``[..., head_dim]`` as complex64 ``[..., head_dim / 2]``: pair i is ``x[i] + i x[i + rotary_dim / 2]``; behind
    those, of all numbers if ``rotary_dim`` is None, come pairs of halves of the numbers that are not rotated.
    """
    turned, kept = x.float().tensor_split((rotary_dim or x.shape[-1],), dim=-1)
    return torch.cat([torch.complex(*part.chunk(2, dim=-1)) for part in (turned, kept)], dim=-1)


def rotations(cos_sin: torch.Tensor, head_dim: int) -> torch.Tensor:
    """``cos + i sin`` of every pair of ``as_pairs``, complex64 ``[positions, head_dim / 2]``; 1 where nothing turns."""
    turned = torch.complex(*cos_sin.chunk(2, dim=-1))
    return torch.nn.functional.pad(turned, (0, head_dim // 2 - turned.shape[-1]), value=1.0)


def rotary_frequencies(cos_sin: torch.Tensor) -> torch.Tensor:
    """Radians per position of every pair, float64 ``[rotary_dim / 2]``; NaN where the table has no constant frequency.

    Takes the model's own table ``[max_position, rotary_dim]``, whatever scaling it was made with; a factor on its
    length (yarn's) does not matter.
    """
    table = as_pairs(cos_sin)
    if len(table) < 2:
        return torch.full(table.shape[1:], float("nan"), dtype=torch.float64)
    frequencies = (table[1].to(torch.complex128) / table[0]).angle()
    step = torch.polar(torch.ones_like(frequencies), frequencies).to(table.dtype)
    deviation = (table[1:] - table[:-1] * step).abs() / table[0].abs()
    rounding = 1 + torch.outer(torch.arange(1, len(table)), frequencies.abs().float())
    return frequencies.where((deviation <= ANGLE_ROUNDING * rounding).all(0), torch.nan)


def known_frequencies(cos_sin: torch.Tensor, head_dim: int | None = None) -> torch.Tensor:
    """``rotary_frequencies`` of the table, on the CPU, found once for all the layers that share it; 0 for the pairs of
    ``head_dim`` that it does not rotate.
    """
    known = _frequencies.setdefault(cos_sin, {})
    pairs = (head_dim or cos_sin.shape[-1]) // 2
    if pairs not in known:
        frequencies = rotary_frequencies(cos_sin.cpu())
        known[pairs] = torch.nn.functional.pad(frequencies, (0, pairs - len(frequencies)))
    return known[pairs]


def chebyshev(tile_tokens: int, terms: int) -> torch.Tensor:
    """The basis, float64 ``[terms, tile_tokens]``: Chebyshev polynomials on -1 .. 1, which the tile is mapped to."""
    points = torch.linspace(-1, 1, tile_tokens, dtype=torch.float64)
    return torch.cos(torch.arange(terms).unsqueeze(1) * points.arccos())


def fit(frequencies: torch.Tensor, tile_tokens: int, terms: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of ``e^{i theta d}``, complex128 ``[terms, pairs]``, and each pair's largest error, ``[pairs]``."""
    basis = chebyshev(tile_tokens, terms).T.to(torch.complex128)
    waves = torch.exp(1j * torch.outer(torch.arange(tile_tokens), frequencies))
    coefficients = torch.linalg.lstsq(basis, waves).solution
    return coefficients, (basis @ coefficients - waves).abs().amax(0)


def pairs_to_rebuild(frequencies: torch.Tensor, errors: torch.Tensor, tolerance: float) -> int:
    """How many pairs, from the fastest on: up to the last whose error is too large or whose frequency is NaN."""
    rebuilt = (frequencies.isnan() | (errors > tolerance)).nonzero().flatten()
    return int(rebuilt[-1]) + 1 if len(rebuilt) else 0


def relative_cost(pairs: int, fast: int, terms: int, tile_tokens: int, queries_per_kv: int) -> float:
    """Operations per token and KV head over those of a full rebuild: rebuilt pairs, products with u, making u."""
    making = 2 * (pairs - fast) / tile_tokens
    return (2 * fast + queries_per_kv * terms * (1 + making)) / (2 * pairs)


def plan_absorption(
    frequencies: torch.Tensor, queries_per_kv: int, tiles: Iterable[int], tolerance: float
) -> Absorption | None:
    """The cheapest choice by ``relative_cost`` whose rotations are off by at most ``tolerance``; None to rebuild all.

    ``frequencies`` float64 ``[pairs]``, highest first, NaN for pairs that must be rebuilt; ``tiles`` are the lengths in
    tokens to choose from.
    """
    pairs, best, best_cost = len(frequencies), None, WORTHWHILE
    for tile_tokens in tiles:
        for terms in range(1, min(MOST_TERMS, tile_tokens) + 1):
            coefficients, errors = fit(frequencies.nan_to_num(), tile_tokens, terms)
            fast = pairs_to_rebuild(frequencies, errors, tolerance)
            cost = relative_cost(pairs, fast, terms, tile_tokens, queries_per_kv)
            if fast < pairs and cost < best_cost:
                slow = coefficients[:, fast:].to(torch.complex64)
                best = Absorption(tile_tokens, fast, chebyshev(tile_tokens, terms).float(), slow)
                best_cost = cost
    return best


def absorbed_scores(
    query: torch.Tensor,
    latent_k: torch.Tensor,
    start: int,
    shape: LayerShape,
    rebuild: KeyRebuild,
    absorption: Absorption,
) -> torch.Tensor:
    """The specification: ``scale * q_j . k[t, h]`` for one tile of context, up to the tolerance of ``absorption``.

    Takes ``query [num_heads, head_dim]``, rotated, and ``latent_k [tokens, num_groups_k, rank_k]`` of the positions
    from ``start`` on, at most ``tile_tokens`` of them; returns float32 ``[num_heads, tokens]``. Needs ``rebuild.k_up``
    and no ``rebuild.k_norm``.
    """
    if rebuild.k_up is None:
        raise ValueError("got no k_up; keys that are cached whole have nothing to absorb")
    fast, tokens = absorption.fast, len(latent_k)
    rotation = rotations(rebuild.cos_sin[start : start + tokens], shape.head_dim)
    # complex [num_kv_heads, queries_per_kv, pairs] and [num_groups_k, rank_k, group_size_k, pairs]
    q = as_pairs(query, shape.rotary_dim).unflatten(0, (shape.num_kv_heads, shape.queries_per_kv)).conj()
    up = as_pairs(rebuild.k_up.unflatten(-1, (shape.group_size_k, shape.head_dim)), shape.rotary_dim)
    latent = latent_k.to(torch.complex64)
    keys = torch.einsum("tgr,grhi->tghi", latent, up[..., :fast]).flatten(1, 2)
    bias = torch.zeros(shape.num_kv_heads, up.shape[-1])
    if rebuild.k_bias is not None:
        bias = as_pairs(rebuild.k_bias.view(shape.num_kv_heads, shape.head_dim), shape.rotary_dim)
    rebuilt = torch.einsum("hji,ti,thi->hjt", q[..., :fast], rotation[:, :fast], keys + bias[:, :fast])
    # complex [num_kv_heads, queries_per_kv, terms, slow pairs]
    moved = (q[..., fast:] * rotation[0, fast:]).unsqueeze(2) * absorption.coefficients
    in_groups = moved.unflatten(0, (shape.num_groups_k, shape.group_size_k))
    u = torch.einsum("ghjni,grhi->ghjnr", in_groups, up[..., fast:]).real
    terms = torch.einsum("ghjnr,tgr->ghjnt", u, latent_k.float()).flatten(0, 1)
    terms = terms + torch.einsum("hjni,hi->hjn", moved, bias[:, fast:].to(moved.dtype)).real.unsqueeze(-1)
    slow = torch.einsum("nt,hjnt->hjt", absorption.basis[:, :tokens], terms)
    return shape.scale * (rebuilt.real + slow).flatten(0, 1)
