"""How prefill is cut into passes and tiles: pure functions of what the host knows without waiting for the device.

A pass rebuilds the keys of some groups for some tiles of the context into a workspace of bounded size, then attends to
them. Groups are independent of each other; where the context of one does not fit, its passes carry the state of the
online softmax on in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.gpu.tiling import SMALLEST_TILE, Device, ceil_div, padded
from palu_vllm.kernels.gpu.tuned import tuned_key

WORKSPACE_BYTES = 64 * 2**20
VALUES_PER_PROGRAM = 256  # columns whose sums are in the registers of 8 warps, of 128 rows
ROWS_IN_REGISTERS, TOKENS_IN_REGISTERS = 64, 32  # of programs whose operands are there, too
REBUILT_NUMBERS = 16384  # float32 of the keys of one program, in the registers of 8 warps


@dataclass(frozen=True)
class PrefillTiling:
    """Sizes of the tiles of the programs of prefill, all powers of two, and how they are compiled."""

    context: int  # tokens of which one program rebuilds the keys; the workspace has whole tiles of them
    rank: int  # of the latent key, per product
    half: int  # half of head_dim, padded
    rows: int  # queries times heads of one program that attends
    tokens: int  # of the context, per step of attention; divides ``context``
    values: int  # of the latent value, per product
    value_tiles: int = 1  # products with latent values, per program
    num_stages: int = 2  # of pipelined loads
    num_warps: int = 8

    @property
    def values_per_program(self) -> int:
        return self.values * self.value_tiles

    def constants(self) -> dict[str, int]:
        """By their names in the kernels."""
        return {
            "TILE_CONTEXT": self.context,
            "TILE_RANK": self.rank,
            "TILE_HALF": self.half,
            "TILE_ROWS": self.rows,
            "TILE_TOKENS": self.tokens,
            "TILE_VALUES": self.values,
            "VALUE_TILES": self.value_tiles,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }

    def attending_memory(self, element_size: int) -> int:
        """Shared memory in bytes of a program that attends: queries, and for every stage keys and values."""
        step = self.tokens * (2 * self.half + self.values_per_program)
        return element_size * (self.rows * 2 * self.half + self.num_stages * step)

    def rebuilding_memory(self, element_size: int) -> int:
        """Of one that rebuilds keys: latents and ``k_up`` for the first tile of ranks and for every stage."""
        return element_size * (self.num_stages + 1) * self.rank * (self.context + 2 * self.half)


@dataclass(frozen=True)
class Pass:
    """Tiles ``first_tile : first_tile + tiles`` of the contexts laid end to end, of some adjacent groups."""

    first_group: int
    groups: int
    first_tile: int
    tiles: int


@dataclass(frozen=True)
class PrefillPlan:
    """All tiles of the contexts in passes of at most ``groups`` and ``tiles``."""

    num_groups: int
    num_tiles: int
    groups: int
    tiles: int

    @property
    def carries(self) -> bool:
        """Whether the context of a group takes several passes."""
        return self.tiles < self.num_tiles

    def passes(self) -> Iterator[Pass]:
        """Those of one group after each other, in order of the context."""
        for first_group in range(0, self.num_groups, self.groups):
            groups = min(self.groups, self.num_groups - first_group)
            for first_tile in range(0, self.num_tiles, self.tiles):
                yield Pass(first_group, groups, first_tile, min(self.tiles, self.num_tiles - first_tile))


@dataclass(frozen=True)
class Lengths:
    """What the host knows of a batch; upper bounds, but for the number of requests."""

    requests: int
    queries: int
    max_query_len: int
    max_seq_len: int
    total_seq_len: int | None = None  # None: only that of the longest is known


def prefill_tiling(shape: LayerShape, element_size: int, device: Device) -> PrefillTiling:
    """One program has ``rows // queries_per_kv`` queries of the heads that share a KV head.

    Tiles of float32 stay small: it has no tensor cores, so that products are unrolled into scalar instructions.
    """
    half = padded(shape.head_dim // 2)
    rows, context, tokens, rank = (128, 128, 64, 64) if element_size <= 2 else (32, 32, 32, 32)
    if not device.shared_operands:
        rows, tokens = min(rows, ROWS_IN_REGISTERS), min(tokens, TOKENS_IN_REGISTERS)
    values, value_tiles = value_columns(shape.rank_v)
    tiling = PrefillTiling(
        context=min(context, REBUILT_NUMBERS // (2 * half)),
        rank=min(padded(shape.rank_k), rank),
        half=half,
        rows=max(rows, padded(shape.queries_per_kv)),
        tokens=tokens,
        values=values,
        value_tiles=value_tiles,
    )
    while tiling.attending_memory(element_size) > device.shared_memory and tiling.tokens > SMALLEST_TILE:
        tiling = replace(tiling, tokens=tiling.tokens // 2)
    while tiling.rebuilding_memory(element_size) > device.shared_memory and tiling.rank > SMALLEST_TILE:
        tiling = replace(tiling, rank=tiling.rank // 2)
    found = device.tiles(tuned_key("prefill", shape, element_size))
    if found is not None:
        tiling = replace(tiling, tokens=found.tokens, num_stages=found.num_stages, num_warps=found.num_warps)
    return replace(tiling, tokens=min(tiling.tokens, tiling.context))


def value_columns(rank_v: int) -> tuple[int, int]:
    """Columns of one product with latent values, and such products of one program: as few programs as their registers
    allow, which each compute the scores anew, and products of 128 columns where 64 would not leave less to padding.
    """
    columns = ceil_div(rank_v, ceil_div(rank_v, VALUES_PER_PROGRAM))
    narrow, wide = ceil_div(columns, 64), ceil_div(columns, 128)
    width, products = (128, wide) if 2 * wide == narrow else (64, narrow)
    return min(width, padded(columns)), products


def context_tiles(lengths: Lengths, sliding_window: int | None, tile_context: int, num_sinks: int = 0) -> int:
    """At least the number of tiles of what all requests see, and at least 1. Sinks have tiles of their own."""
    of_sinks = lengths.requests * ceil_div(num_sinks, tile_context)
    longest, total = max(1, lengths.max_seq_len), lengths.total_seq_len
    if sliding_window is not None:
        longest = min(longest, lengths.max_query_len + sliding_window - 1)
        seen = lengths.queries + lengths.requests * (sliding_window - 1)
        total = seen if total is None else min(total, seen)
    tiles = lengths.requests * ceil_div(longest, tile_context)
    if total is not None:
        tiles = min(tiles, (total + lengths.requests * (tile_context - 1)) // tile_context)
    return of_sinks + tiles


def plan_prefill(
    shape: LayerShape,
    lengths: Lengths,
    tiling: PrefillTiling,
    element_size: int,
    device: Device,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> PrefillPlan:
    """Passes as large as fit into ``workspace_bytes``, but at least one tile of one group.

    Where not all fits, fewer groups are preferred to fewer tiles, as long as their programs fill the device.
    """
    tiles = context_tiles(lengths, shape.sliding_window, tiling.context, shape.num_sinks)
    fitting = max(1, workspace_bytes // (tiling.context * workspace_width(shape) * element_size))
    programs = query_tiles(shape, lengths, tiling) * shape.group_size * value_programs(shape, tiling)
    filling = min(shape.num_groups, fitting, ceil_div(device.multiprocessors, programs))
    groups = min(shape.num_groups, max(fitting // tiles, filling))
    groups = ceil_div(shape.num_groups, ceil_div(shape.num_groups, groups))
    return PrefillPlan(
        num_groups=shape.num_groups,
        num_tiles=tiles,
        groups=groups,
        tiles=ceil_div(tiles, ceil_div(tiles, fitting // groups)),
    )


def workspace_width(shape: LayerShape) -> int:
    """Numbers per token and group: the keys of its heads, and the latent values."""
    return shape.group_size * shape.head_dim + shape.numbers_v


def query_tiles(shape: LayerShape, lengths: Lengths, tiling: PrefillTiling) -> int:
    """At least the tiles of all queries, none of which spans two requests."""
    return lengths.queries // (tiling.rows // shape.queries_per_kv) + lengths.requests


def value_programs(shape: LayerShape, tiling: PrefillTiling) -> int:
    """Programs per tile of queries and KV head."""
    return ceil_div(shape.rank_v, tiling.values_per_program)


def scratch_shapes(
    shape: LayerShape, lengths: Lengths, tiling: PrefillTiling, plan: PrefillPlan, element_size: int
) -> tuple[tuple[int, ...], ...]:
    """Of float32 scratch: the workspace, the first tile of every request, then what passes carry, if they do (sums of
    values, maxima, sums of weights).
    """
    numbers = plan.groups * plan.tiles * tiling.context * workspace_width(shape)
    workspace = ((ceil_div(numbers * element_size, 4),), (lengths.requests + 1,))
    if not plan.carries:
        return workspace
    rows = (lengths.queries, plan.groups * shape.group_size * shape.queries_per_kv)
    state = (value_programs(shape, tiling), *rows)
    return *workspace, (*rows, shape.rank_v), state, state
