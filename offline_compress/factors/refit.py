"""``up`` is fitted again by least squares, with ``down`` as it is: in closed form, one KV head at a time.

A decomposition weighs all heads of a group by one second moment of inputs. What a head rebuilds is read with weights of
its own, so its part of ``up`` can do better:

**Keys**: ``min sum_t a_t |k_t - up c_t|^2`` with ``a_t`` how much the head's queries read of token t
(``error_metric.py``). **Values**: attention is linear in them, so what counts is their mean under attention:
``min sum_m |sum_t p_mt (v_t - up c_t)|^2 / |h_m|^2``, the errors of tokens that are read together added up.

Where nothing is lost (full rank, or values that latents give exactly) ``up`` already solves both and stays as it is.
Directions without data stay too: the step from the old ``up`` is damped.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from offline_compress.calibration.layer_probes import probing_bytes
from offline_compress.calibration.probe import AttentionProbe, Probes
from offline_compress.calibration.statistics import kept_tokens
from offline_compress.factors.all_groups import factor_bytes
from offline_compress.factors.decomposition import Factors
from offline_compress.factors.error_metric import read_energy
from offline_compress.grouping import Grouping
from offline_compress.model.access import dense_bytes
from offline_compress.plan import Plan

RELATIVE_DAMPING = 1e-4
FLOAT32, FLOAT64 = 4, 8
# a probe, a KV head and rows [tokens, width] to the rows that are compared
Read = Callable[[AttentionProbe, int, torch.Tensor], torch.Tensor]


def read_keys(probe: AttentionProbe, kv_head: int, rows: torch.Tensor) -> torch.Tensor:
    """``rows [tokens, width]`` times the root of ``a_t``."""
    queries = probe.probabilities.shape[1]
    read = sum(read_energy(probe, kv_head, query).sum(0) for query in range(queries))
    if probe.key_gain is not None:
        read = read * probe.key_gain[kv_head].square().mean(-1)
    return rows * read.sqrt()[:, None]


def read_values(probe: AttentionProbe, kv_head: int, rows: torch.Tensor) -> torch.Tensor:
    """Means of ``rows [tokens, width]`` under the attention of every query, ``[queries_per_kv * tokens, width]``."""
    probabilities = probe.probabilities[kv_head] / probe.energy.sqrt()[:, None]
    return (probabilities @ rows).flatten(0, 1)


def fitted(old: torch.Tensor, gram: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """``up [rank, head_dim]`` that minimises ``|X up - Y|^2 + damping |up - old|^2``, float64.

    ``gram`` is ``X^T X [rank, rank]``, ``product`` is ``X^T Y [rank, head_dim]``.
    """
    damping = RELATIVE_DAMPING * gram.diagonal().mean()
    if damping <= 0:
        return old
    damped = gram.clone()
    damped.diagonal().add_(damping)
    return old + torch.cholesky_solve(product - gram @ old, torch.linalg.cholesky(damped))


@dataclass(frozen=True)
class Refit:
    """For the keys or the values of a layer; without probes, factors stay as they are."""

    read: Read
    probes: Probes = ()

    def __call__(self, factors: Factors, weight: torch.Tensor) -> Factors:
        """``factors`` of ``weight [num_kv_heads * head_dim, hidden]`` with another ``up``."""
        rank = factors.up.shape[1]
        return replace(factors, up=self.at_ranks(factors, weight, [rank]).get(rank, factors.up))

    @torch.no_grad()
    def at_ranks(self, factors: Factors, weight: torch.Tensor, ranks: Iterable[int]) -> dict[int, torch.Tensor]:
        """``up [num_groups, rank, full]`` for the leading latents only, at every rank; empty without probes."""
        if not len(self.probes):
            return {}
        grams, products = self._sums(factors, weight)
        groups, heads = len(factors.up), len(grams)
        old = factors.up.unflatten(-1, (heads // groups, -1)).transpose(1, 2).flatten(0, 1)  # heads x rank x head_dim
        found = {}
        for rank in ranks:
            leading = zip(old[:, :rank], grams[:, :rank, :rank], products[:, :rank], strict=True)
            up = torch.stack([fitted(*each) for each in leading])
            found[rank] = up.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
        return found

    def _sums(self, factors: Factors, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``X^T X [heads, rank, rank]`` and ``X^T Y [heads, rank, head_dim]`` of all probes; one head is at work."""
        grams = products = factors.up.new_zeros(0)
        for probe, inputs in self.probes:
            heads, _, head_dim = probe.values.shape
            if not len(grams):
                rank = factors.up.shape[1]
                grams, products = (factors.up.new_zeros(heads, rank, width) for width in (rank, head_dim))
            for head, (gram, product) in enumerate(zip(grams, products, strict=True)):
                latents, targets = self._rows(probe, factors, weight, inputs, head)
                gram.addmm_(latents.T, latents)
                product.addmm_(latents.T, targets)
        return grams, products

    def _rows(
        self, probe: AttentionProbe, factors: Factors, weight: torch.Tensor, inputs: torch.Tensor, kv_head: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents ``[rows, rank]`` and what a head should rebuild from them ``[rows, head_dim]``, float64."""
        heads = len(probe.values)
        down = factors.down.chunk(len(factors.up))[kv_head * len(factors.up) // heads]
        both = torch.cat([down.float(), weight.chunk(heads)[kv_head].float()])
        found = self.read(probe, kv_head, inputs @ both.T).double()
        return found[:, : len(down)], found[:, len(down) :]


def peak_bytes(plan: Plan, side: Grouping, ranks: Sequence[int]) -> int:
    """For all ``ranks``, the last the widest: sums of every head, and a probe with the rows of a head or a solution."""
    geometry, widest = plan.geometry, ranks[-1]
    heads, width, tokens = geometry.num_kv_heads, geometry.head_dim, kept_tokens(plan)
    sums = FLOAT64 * heads * (widest**2 + 2 * widest * width)
    found = FLOAT64 * heads * width * sum(ranks)
    rows = (FLOAT32 + FLOAT64) * geometry.num_heads // heads * tokens * (widest + width)
    rows += 2 * FLOAT32 * (widest + width) * geometry.hidden_size
    solving = found + 3 * FLOAT64 * widest**2 + FLOAT64 * heads * width * widest
    factors = dense_bytes(plan.source) + side.num_groups * factor_bytes(plan, side, widest)
    return factors + sums + max(probing_bytes(plan) + rows, solving)
