"""The launches of decoding over latents, bound to what is the same at every step."""

import torch
import triton

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.gpu.arguments import cache_strides, constants, log2_scale, rebuild_operands, step_operands
from palu_vllm.kernels.gpu.bound import BoundKernel
from palu_vllm.kernels.gpu.decode.kernel import decode_split_kernel
from palu_vllm.kernels.gpu.decode.plan import DecodePlan
from palu_vllm.kernels.gpu.decode.reduce import V_UP_COLUMNS, decode_reduce_kernel
from palu_vllm.kernels.gpu.tiling import programs_of_group
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch


def partial_shapes(shape: LayerShape, requests: int, num_splits: int, queries: int = 1) -> tuple[tuple[int, ...], ...]:
    """Of the three float32 scratch tensors of ``DecodeLaunches``: sums of values, maxima, sums of weights."""
    rows = (requests, num_splits, queries, shape.num_heads)
    return (*rows, shape.rank_v), rows, rows


class DecodeLaunches:
    """``z[j] = sum_t softmax_t(scale * q_j . k[t, h]) c_v[t]`` for requests of at most ``plan.tiling.queries`` queries,
    over a cache with the strides of ``cache``. With ``v_up`` the values of every head instead of ``z``.
    """

    def __init__(
        self,
        shape: LayerShape,
        rebuild: KeyRebuild,
        plan: DecodePlan,
        cache: torch.Tensor,
        v_up: torch.Tensor | None = None,
    ) -> None:
        given = constants(shape, cache.shape[2], plan.tiling) | cache_strides(cache) | rebuild_operands(rebuild)
        given |= {"scale_log2": log2_scale(shape), "num_groups": shape.num_groups} | plan.arguments(shape)
        self.num_heads, self.programs = shape.num_heads, shape.num_groups * programs_of_group(shape, plan.tiling)
        self.split = BoundKernel(decode_split_kernel, given)
        joined = {
            "v_up_ptr": v_up,
            "stride_v_up_group": 0 if v_up is None else v_up.stride(0),
            "stride_v_up_rank": 0 if v_up is None else v_up.stride(1),
            "TILE_VALUES": triton.next_power_of_2(shape.rank_v),
            "TILE_COLUMNS": V_UP_COLUMNS,
            "num_warps": 4,
        }
        del given["num_stages"]
        self.reduce = BoundKernel(decode_reduce_kernel, given | joined)

    def run(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        batch: PagedBatch,
        out: torch.Tensor,
        partials: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """Shapes as in ``operands``; ``partials`` are contiguous float32 of ``partial_shapes``, any contents."""
        requests, num_splits, queries = partials[1].shape[:3]
        others = step_operands(query, cache, batch) | {
            "partial_ptr": partials[0],
            "partial_max_ptr": partials[1],
            "partial_sum_ptr": partials[2],
            "out_ptr": out,
            "stride_out_token": out.stride(0),
            "stride_out_head": out.stride(1),
            "num_splits": num_splits,
        }
        self.split.launch((requests, self.programs, num_splits), others)
        self.reduce.launch((requests, self.num_heads, queries), others)
