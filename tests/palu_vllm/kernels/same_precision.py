"""What a careful torch implementation gives in the precision of the cache: the yardstick for the kernels' error."""

import torch

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.reference import gather_latents, met_at, rebuild_keys, seen_positions, visible
from tests.palu_vllm.kernels.paged_batches import UNTOUCHED, Problem

ALLOWED = 2.0  # times the error of the same-precision implementation
FLOOR = 64 * torch.finfo(torch.float32).eps  # of the largest number, for another order of summation


def same_precision_attention(problem: Problem) -> torch.Tensor:
    """Operands of every product rounded to the dtype of the cache, where it is packed to that of the query, everything
    between them in float32.
    """
    shape, batch = problem.shape, problem.batch
    out = problem.empty_out()
    starts = batch.query_start_loc.tolist()
    for request, seq_len in enumerate(batch.seq_lens.tolist()):
        rows = range(starts[request], starts[request + 1])
        query_positions = torch.arange(seq_len - len(rows), seq_len)
        positions = seen_positions(seq_len - len(rows), seq_len, shape)
        latent_k, latent_v = gather_latents(problem.cache, batch.block_table[request], positions, shape)
        latent_k, latent_v = (latent.to(problem.query.dtype) for latent in (latent_k, latent_v))
        mask = visible(query_positions, positions, shape.sliding_window, shape.num_sinks)
        run = 1 if shape.shift_sinks else max(1, len(rows))
        for start in range(0, len(rows), run):
            places = met_at(int(query_positions[start]), positions, shape)
            keys = rebuild_keys(latent_k, problem.rebuild, shape, places).to(latent_k.dtype)
            some = slice(rows[start], rows[start] + run)
            out[some] = attention(problem.query[some], keys, latent_v, mask[start : start + run], shape).to(out.dtype)
    return out


def attention(
    query: torch.Tensor, keys: torch.Tensor, latent_v: torch.Tensor, mask: torch.Tensor, shape: LayerShape
) -> torch.Tensor:
    keys = keys.float().repeat_interleave(shape.queries_per_kv, dim=1)
    values = latent_v.float().repeat_interleave(shape.queries_per_kv * shape.group_size_v, dim=1)
    scores = shape.scale * torch.einsum("qhd,thd->hqt", query.float(), keys)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp().masked_fill(~mask, 0.0)
    sums = torch.einsum("hqt,thr->qhr", weights.to(latent_v.dtype).float(), values)
    return sums / weights.sum(dim=-1).transpose(0, 1).unsqueeze(-1)


def assert_as_precise(actual: torch.Tensor, reference: torch.Tensor, problem: Problem) -> None:
    """The largest error against float32 is at most twice that of torch in the same precision; padding untouched."""
    rows = int(problem.batch.query_start_loc[-1])
    assert (actual[rows:] == UNTOUCHED).all(), "rows of padding were written"
    expected = reference[:rows].float()
    yardstick = largest_error(same_precision_attention(problem)[:rows], expected)
    error = largest_error(actual[:rows], expected)
    limit = ALLOWED * yardstick + FLOOR * float(expected.abs().max())
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (actual.float() - expected).abs().max()
    return float("inf") if difference.isnan() else float(difference)
