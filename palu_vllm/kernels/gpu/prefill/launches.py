"""The launches of prefill: pass by pass a workspace of whole keys and values is filled and attended to."""

from collections.abc import Callable
from typing import Any

import torch

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.gpu.arguments import layer_constants, log2_scale, operands, taken_by
from palu_vllm.kernels.gpu.prefill.context_tiles import number_tiles
from palu_vllm.kernels.gpu.prefill.kernel import prefill_kernel
from palu_vllm.kernels.gpu.prefill.plan import Lengths, Pass, PrefillPlan, PrefillTiling, query_tiles, value_programs
from palu_vllm.kernels.gpu.prefill.rebuild_keys import fill_workspace
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch


def prefill_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    batch: PagedBatch,
    out: torch.Tensor,
    shape: LayerShape,
    rebuild: KeyRebuild,
    tiling: PrefillTiling,
    plan: PrefillPlan,
    scratch: tuple[torch.Tensor, ...],
) -> None:
    """``z[j] = sum_t softmax_t(scale * q_j . k[t, h]) c_v[t]`` for any number of queries per request.

    Shapes as in ``operands``; ``scratch`` are contiguous float32 tensors of ``prefill_plan.scratch_shapes``, any
    contents. Several passes give bit for bit what one gives.
    """
    available = operands(query, cache, batch, rebuild) | layer_constants(shape, cache.shape[2])
    available |= {"scale_log2": log2_scale(shape), "sinks_ptr": None, "SOFT_CAP_LOG2": None, "LEAST_QUERIES": 1}
    dtype = query.dtype if cache.dtype == torch.uint8 else cache.dtype
    number_tiles(batch, scratch[1].view(torch.int32), shape.sliding_window, tiling.context, shape.num_sinks)
    attend_in_passes(available, lengths_of(query, batch), out, shape, tiling, plan, scratch, dtype, fill_workspace)


def attend_in_passes(
    available: dict[str, Any],
    lengths: Lengths,
    out: torch.Tensor,
    shape: LayerShape,
    tiling: PrefillTiling,
    plan: PrefillPlan,
    scratch: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
    fill: Callable[[dict[str, Any], LayerShape, Pass], None],
) -> None:
    """Attention over keys and values of ``dtype`` that ``fill`` writes into the workspace, pass by pass; ``available``
    are the arguments that it and the kernel take, by name. Tiles are numbered before.
    """
    workspace, tile_starts, *carried = scratch
    available = (
        available
        | tiling.constants()
        | dict(zip(("carried_ptr", "carried_max_ptr", "carried_sum_ptr"), carried or (None,) * 3, strict=True))
        | {"out_ptr": out, "stride_out_token": out.stride(0), "stride_out_head": out.stride(1)}
        | {"num_requests": lengths.requests, "num_queries": lengths.queries}
        | {"tile_starts_ptr": tile_starts.view(torch.int32)}
    )
    tiles_of_queries = query_tiles(shape, lengths, tiling)
    for part in plan.passes():
        of_pass = available | pass_operands(workspace.view(dtype), shape, tiling, part)
        fill(of_pass, shape, part)
        programs = part.groups * shape.group_size * value_programs(shape, tiling)
        prefill_kernel[(tiles_of_queries, programs)](**taken_by(prefill_kernel, of_pass))


def pass_operands(
    workspace: torch.Tensor, shape: LayerShape, tiling: PrefillTiling, part: Pass
) -> dict[str, torch.Tensor | int]:
    """Keys, then values of one pass in the workspace, and which they are."""
    kv_heads = part.groups * shape.group_size
    return {
        "key_ptr": workspace,
        "value_ptr": workspace[kv_heads * part.tiles * tiling.context * shape.head_dim :],
        "first_group": part.first_group,
        "kv_heads_of_pass": kv_heads,
        "first_tile": part.first_tile,
        "tiles": part.tiles,
    }


def lengths_of(query: torch.Tensor, batch: PagedBatch) -> Lengths:
    return Lengths(
        requests=batch.seq_lens.shape[0],
        queries=query.shape[0],
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
        total_seq_len=batch.total_seq_len,
    )
