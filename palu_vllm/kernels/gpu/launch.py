"""The Triton implementation of ``operands``: chooses the kernel, its tiles and its scratch memory."""

from collections.abc import Callable
from functools import cache as cached

import torch

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.checks import check_attend, check_layer
from palu_vllm.kernels.gpu.decode.launches import DecodeLaunches, partial_shapes
from palu_vllm.kernels.gpu.decode.plan import DecodePlan, decode_plan
from palu_vllm.kernels.gpu.prefill.launches import lengths_of, prefill_attention
from palu_vllm.kernels.gpu.prefill.plan import WORKSPACE_BYTES, plan_prefill, prefill_tiling, scratch_shapes
from palu_vllm.kernels.gpu.store.latents import store_latents
from palu_vllm.kernels.gpu.tiling import Device, ceil_div, decode_rows, decode_splits, group_parts, power_of_two
from palu_vllm.kernels.gpu.tuned import tuned_for
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch
from palu_vllm.kernels.value_up import reduce_multiplies, write_values

DECODE_QUERIES = (1, 2, 4, 8)  # of one request; more are prefilled
DECODE_ROWS = 32  # queries times heads of a program; more would not fit into registers
STAND_IN = Device(multiprocessors=8, shared_memory=227 * 1024)  # where there is no GPU: interpreter, compile tests


@cached
def device_of(device: torch.device) -> Device:
    if device.type != "cuda":
        return STAND_IN
    properties = torch.cuda.get_device_properties(device)
    return Device(
        multiprocessors=properties.multi_processor_count,
        shared_memory=properties.shared_memory_per_block_optin,
        shared_operands=properties.major in (9, 10),
        tuned=tuned_for(properties.name) + tuned_for(f"sm_{properties.major}{properties.minor}"),
    )


def compute_type(query: torch.Tensor, cache: torch.Tensor) -> torch.dtype:
    """Of the operands of products. Raises ValueError for bfloat16 on the CPU, where Triton's interpreter gets them
    wrong.
    """
    dtype, name = (query.dtype, "query") if cache.dtype == torch.uint8 else (cache.dtype, "cache")
    if cache.device.type == "cpu" and dtype == torch.bfloat16:
        raise ValueError(f"got a bfloat16 {name} on the CPU, expected float16 or float32 in Triton's interpreter")
    return dtype


def new_scratch(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Uninitialised contiguous float32 tensors, needed until the call of ``attend`` has run on the device."""
    return tuple(torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes)


class TritonAttention:
    """``store`` and ``attend`` of ``operands`` as Triton kernels.

    ``allocate`` is ``new_scratch`` or a replacement that hands out memory shared between layers. ``attend`` reads
    no tensor on the host, so it can be captured in a graph. ``device`` is what tiles are chosen for where it is not
    that of the cache: compiling for another. ``workspace_bytes`` bounds the keys and values that prefill has at a time.
    Raises ValueError where ``shape``, ``rebuild`` and ``v_up`` contradict each other, and where operands do not fit.
    """

    def __init__(
        self,
        shape: LayerShape,
        rebuild: KeyRebuild,
        allocate: Callable = new_scratch,
        device: Device | None = None,
        workspace_bytes: int = WORKSPACE_BYTES,
        v_up: torch.Tensor | None = None,
    ) -> None:
        check_layer(shape, rebuild, v_up)
        self.shape = shape
        self.v_up = v_up
        self.rebuild = rebuild
        self.allocate = allocate
        self.device = device
        self.workspace_bytes = workspace_bytes
        self.bound: dict[tuple, DecodeLaunches] = {}
        for queries in DECODE_QUERIES:  # plans are found here, never while a graph is captured
            self.captures(queries)

    def plan(self, queries: int, dtype: torch.dtype, device: torch.device) -> DecodePlan | None:
        """How at most ``queries`` queries per request are decoded; None where they are too many."""
        queries, chip = power_of_two(queries), self.device or device_of(device)
        rows = decode_rows(self.shape, queries, group_parts(self.shape, queries, chip))
        if queries > DECODE_QUERIES[-1] or (queries > 1 and rows > DECODE_ROWS):
            return None
        if queries > 1 and self.shape.shift_sinks:
            return None  # they meet the sinks at places of their own
        return decode_plan(self.shape, self.rebuild, queries, dtype, chip)

    def captures(self, queries: int) -> bool:
        """Where they are decoded: scratch of prefill follows from lengths."""
        weight = self.rebuild.cos_sin if self.rebuild.k_up is None else self.rebuild.k_up
        return self.plan(queries, weight.dtype, weight.device) is not None

    def store(
        self, latent_k: torch.Tensor, latent_v: torch.Tensor, cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        store_latents(latent_k, latent_v, cache, slot_mapping, self.shape.slot)

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        check_attend(query, cache, batch, out, self.shape, self.v_up)
        dtype = compute_type(query, cache)
        if batch.seq_lens.shape[0] == 0:
            return
        plan = self.plan(batch.max_query_len, dtype, cache.device)
        if self.v_up is None or (plan is not None and self.reduce_multiplies(batch, plan, self.v_up)):
            self.run(query, cache, batch, out, plan, dtype.itemsize, self.v_up)
            return
        latents = self.latent_out(out)
        self.run(query, cache, batch, latents, plan, dtype.itemsize)
        write_values(latents, self.v_up, out, batch.query_start_loc, self.shape)

    def reduce_multiplies(self, batch: PagedBatch, plan: DecodePlan, v_up: torch.Tensor) -> bool:
        rows = batch.seq_lens.shape[0] * plan.tiling.queries
        return reduce_multiplies(self.shape, rows, v_up.element_size())

    def latent_out(self, out: torch.Tensor) -> torch.Tensor:
        """Scratch for ``[tokens, num_heads, rank_v]`` of the dtype of ``out``."""
        numbers = out.shape[0] * self.shape.num_heads * self.shape.rank_v
        (scratch,) = self.allocate(((ceil_div(numbers * out.element_size(), 4),),), out.device)
        return scratch.view(out.dtype)[:numbers].view(*out.shape[:2], self.shape.rank_v)

    def run(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        batch: PagedBatch,
        out: torch.Tensor,
        plan: DecodePlan | None,
        element_size: int,
        v_up: torch.Tensor | None = None,
    ) -> None:
        """Latents, or with ``v_up`` values of decoding."""
        if plan is None:
            self.prefill(query, cache, batch, out, element_size)
        else:
            self.decode(query, cache, batch, out, plan, v_up)

    def decode(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        batch: PagedBatch,
        out: torch.Tensor,
        plan: DecodePlan,
        v_up: torch.Tensor | None,
    ) -> None:
        requests, device = batch.seq_lens.shape[0], self.device or device_of(cache.device)
        num_splits = decode_splits(self.shape, plan.tiling, requests, batch.max_seq_len, device)
        shapes = partial_shapes(self.shape, requests, num_splits, plan.tiling.queries)
        partials = self.allocate(shapes, cache.device)
        self.launches(plan, cache, v_up).run(query, cache, batch, out, partials)

    def launches(self, plan: DecodePlan, cache: torch.Tensor, v_up: torch.Tensor | None) -> DecodeLaunches:
        """Of a plan, which is never made twice, for such a cache."""
        of = id(plan), cache.stride(), cache.shape[2], v_up is None
        if of not in self.bound:
            self.bound[of] = DecodeLaunches(self.shape, self.rebuild, plan, cache, v_up)
        return self.bound[of]

    def prefill(
        self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor, element_size: int
    ) -> None:
        device, lengths = self.device or device_of(cache.device), lengths_of(query, batch)
        tiling = prefill_tiling(self.shape, element_size, device)
        plan = plan_prefill(self.shape, lengths, tiling, element_size, device, self.workspace_bytes)
        scratch = self.allocate(scratch_shapes(self.shape, lengths, tiling, plan, element_size), cache.device)
        prefill_attention(query, cache, batch, out, self.shape, self.rebuild, tiling, plan, scratch)
