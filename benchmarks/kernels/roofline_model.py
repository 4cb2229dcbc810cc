"""What decode attention must move and multiply, and which of it bounds the time: pure functions of shapes and rates.

Counted are bytes of device memory, bytes from L2 to the multiprocessors (where a tile of tokens reads ``k_up`` again),
operations on tensor cores, with the padding of the tiles, and, where it is told how many a number takes, instructions
that unpack codes. Not counted are rotation and softmax, which run beside the tensor cores, and the time to start and to
drain a kernel: a bound is what no kernel of this plan beats.
"""

from dataclasses import dataclass, fields

from benchmarks.kernels.gpus import Gpu
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.absorbed import Absorption, relative_cost
from palu_vllm.kernels.gpu.decode.plan import columns
from palu_vllm.kernels.gpu.tiling import Tiling, ceil_div, decode_splits

NUMBER = 2  # bytes of bfloat16
FLOAT = 4
WARP = 32  # threads
FLOP = 2  # a multiplication and an addition


@dataclass(frozen=True)
class Work:
    """Of one step of one layer."""

    memory_bytes: float
    l2_bytes: float
    flops: float
    instructions: float = 0.0  # of a warp each, that unpack numbers

    def __add__(self, other: "Work") -> "Work":
        sums = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        return Work(**sums)

    def seconds(self, gpu: Gpu) -> dict[str, float]:
        return {
            "memory": self.memory_bytes / gpu.memory_bandwidth,
            "L2": self.l2_bytes / gpu.l2_bandwidth,
            "tensor cores": self.flops / gpu.tensor_flops,
            "instructions": self.instructions / gpu.instructions,
        }

    def bound(self, gpu: Gpu) -> tuple[str, float]:
        """What takes longest, and its seconds."""
        return max(self.seconds(gpu).items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Batch:
    """``requests`` that each decode one token behind ``context`` cached ones, that token included."""

    requests: int
    context: int

    @property
    def tokens(self) -> int:
        return self.requests * self.context


@dataclass(frozen=True)
class Absorbing:
    """The sizes of an ``Absorption``: of ``pairs`` rotary pairs those before ``fast`` are rebuilt."""

    tile_tokens: int
    fast: int
    terms: int

    @classmethod
    def of(cls, plan: Absorption) -> "Absorbing":
        return cls(plan.tile_tokens, plan.fast, len(plan.basis))


def rebuild_flops(shape: LayerShape, batch: Batch, absorbing: Absorbing | None = None) -> float:
    """Of rebuilding every key once per KV head or, absorbed, of what replaces it (``kernels/absorbed.py``)."""
    whole = FLOP * batch.tokens * shape.num_kv_heads * shape.rank_k * shape.head_dim
    if absorbing is None:
        return whole
    return whole * relative_cost(
        shape.head_dim // 2, absorbing.fast, absorbing.terms, absorbing.tile_tokens, shape.queries_per_kv
    )


def latents_and_rebuild(shape: LayerShape, batch: Batch, absorbing: Absorbing | None = None) -> Work:
    """The least that any plan does: each latent read once, each key rebuilt once. The bounds of the design."""
    latents = batch.tokens * shape.num_groups * slot_bytes(shape)
    return Work(latents, 0, rebuild_flops(shape, batch, absorbing))


def slot_bytes(shape: LayerShape) -> int:
    return shape.slot_width * element_bytes(shape)


def element_bytes(shape: LayerShape) -> int:
    """Of the cache."""
    return NUMBER if shape.slot is None else 1


def dense_work(shape: LayerShape, batch: Batch) -> Work:
    """Attention over whole keys and values in bfloat16, at best: the bound that dense kernels come close to."""
    cache = batch.tokens * shape.num_kv_heads * 2 * shape.head_dim * NUMBER
    return Work(cache, cache, 2 * FLOP * batch.tokens * shape.num_heads * shape.head_dim)


def unpacking(numbers: float, instructions_per_number: float) -> Work:
    """Of turning codes into operands of a product, by every thread of a warp a number at a time."""
    return Work(0, 0, 0, instructions=numbers * instructions_per_number / WARP)


def codec_work(shape: LayerShape, batch: Batch, bytes_per_token: int, instructions_per_number: float = 0) -> Work:
    """Attention over a codec's slots, at least: each slot read once, and two products per query head with a group's
    codes of K and of V, which are as wide as the group's heads together.
    """
    width = shape.group_size * shape.head_dim
    slots, numbers = batch.tokens * bytes_per_token, 2 * batch.tokens * shape.num_groups * width
    work = Work(slots, slots, 2 * FLOP * batch.tokens * shape.num_heads * width)
    return work + unpacking(numbers, instructions_per_number)


def decode_work(shape: LayerShape, batch: Batch, gpu: Gpu, tiling: Tiling) -> Work:
    """What ``decode_split_kernel`` does with the tiles of its plan, which rebuild whole keys or absorb slow pairs.

    Programs of further values of a group read its key latents again, from L2, and score its keys again. Every tile of
    tokens reads all of ``k_up``: the columns of fast pairs to rebuild keys, those of slow ones to absorb them.
    """
    splits = decode_splits(shape, tiling, batch.requests, batch.context, gpu.device)
    parts = batch.tokens * shape.num_groups * tiling.parts  # of the heads of a group, each reads a latent of K and of V
    programs = ceil_div(shape.rank_v, tiling.values_per_program)  # of each part of the heads
    tiles = batch.requests * ceil_div(batch.context, tiling.tokens)
    computed = programs * tiles * tiling.tokens * shape.num_groups  # tokens of a group, padding included

    rows = tiling.parts * tiling.rows
    key, value = (width * element_bytes(shape) for width in (shape.key_width, shape.value_width))
    k_up = shape.num_groups_k * shape.rank_k * shape.group_size_k * shape.head_dim * NUMBER
    table = 2 * tiling.half * FLOAT  # cosines and sines of the pairs whose keys are rebuilt
    partials = 2 * batch.requests * splits * shape.num_heads * (shape.rank_v + 2) * FLOAT
    return Work(
        memory_bytes=batch.tokens * shape.num_groups * slot_bytes(shape) + k_up + batch.context * table,
        l2_bytes=parts * (value + programs * (key + table)) + programs * tiles * k_up + partials,
        flops=FLOP * computed * (shape.rank_k * columns(shape, tiling) + rows * tiling.values_per_program),
    )
