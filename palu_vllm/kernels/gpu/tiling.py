"""How the kernels cut a layer into tiles: pure functions of shapes and device, testable without a GPU.

Those of prefill are in ``prefill_plan``.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from palu_vllm.format.latent_format import SlotFormat
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.gpu.tuned import Tiles, Tuned, tuned_key

SMALLEST_TILE, LARGE_TILE = 16, 512  # of any dimension of a product on tensor cores
ACCUMULATED_NUMBERS = 16384  # float32 that the registers of 8 warps hold beside the rest of a program
ROWS_OF_ONE_QUERY = 32  # heads of one program: products of more take registers that are needed for values
ROWS_OF_SEVERAL_QUERIES = 16  # likewise, of several queries, each with a mask of its own
DECODE_PAIRS = 32  # rebuilt together: keys, cosines and sines of more would not fit into registers beside the rest
NORMALISED_PAIRS = 16  # likewise, where weights and sums of squares of a key norm are there too


class Most(NamedTuple):
    """The largest tile of decoding in one situation. What crowds the registers makes it smaller."""

    tokens: int = LARGE_TILE
    rank: int = LARGE_TILE
    values: int = LARGE_TILE
    num_stages: int = 2


# Measured is what ``benchmarks.kernels.check`` counts: bytes of registers on the stack of kernels that are compiled
# ahead of time. With these tiles none of the recommended shapes has any. No row has been timed on a chip.
MOST = {
    # situation: most                                       compiled for        because
    "16-bit numbers": Most(128),                          # sm_90               tensor cores
    "float32": Most(32, 32),                              # sm_90               products are unrolled
    "many rows": Most(rank=128),                          # sm_90               scores of more than 16 rows
    "operands in registers": Most(64),                    # sm_80, sm_89        no operands from shared memory
    "any values": Most(values=64),                        # sm_90               they pass through registers
    "one packed tier": Most(),                            # sm_90               nothing is joined
    "several packed tiers": Most(rank=128),               # sm_90               all are held until they are joined
    "crowded packed latents": Most(64, 64),               # sm_90               many rows, or three tiers or more
    "scale groups": Most(64, 32, num_stages=1),           # sm_90               a scale per number
    "scale groups in many tiers": Most(32, 16, num_stages=1),  # sm_90          both
    "normalised packed keys of several queries": Most(rank=64),  # sm_80        norm and masks beside them
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """What the kernels need to know of a GPU."""

    multiprocessors: int
    shared_memory: int  # bytes that one program may use
    shared_operands: bool = True  # tensor cores read operands from shared memory; older ones through registers alone
    tuned: Tuned = ()  # tiles that were found offline, before the formulas; of one key the first

    def tiles(self, key: str) -> Tiles | None:
        """Those of ``tuned_key``; None where nothing is stored."""
        return next((tiles for tuned, tiles in self.tuned if tuned == key), None)


@dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles of one program, all powers of two, and how it is compiled."""

    tokens: int  # of the context, per step
    rank: int  # of the latent key, per product
    half: int  # half of head_dim, padded
    rows: int  # queries times heads
    values: int  # of the latent value, per product
    num_stages: int  # of pipelined loads
    num_warps: int = 8
    value_tiles: int = 1  # products with latent values, per program
    half_tiles: int = 1  # products with each half of k_up
    queries: int = 1  # of one request at most, in decoding
    parts: int = 1  # programs that share the KV heads of a group, in decoding
    terms: int = 0  # of absorbed RoPE; then ``half`` counts the pairs that are rebuilt
    slow: int = 0  # pairs that are absorbed, padded

    @property
    def values_per_program(self) -> int:
        return self.values * self.value_tiles

    @property
    def pairs(self) -> int:
        """Rotary pairs that are rebuilt together."""
        return self.half // self.half_tiles

    def tuned(self, tiles: Tiles | None) -> "Tiling":
        """With these tiles in the place of its own."""
        if tiles is None:
            return self
        values = tiles.values or self.values
        return replace(
            self,
            tokens=tiles.tokens,
            num_stages=tiles.num_stages,
            num_warps=tiles.num_warps,
            rank=min(self.rank, tiles.rank or self.rank),
            half_tiles=half_tiles(self.half, tiles.pairs or self.pairs),
            values=values,
            value_tiles=ceil_div(self.values_per_program, values),
        )

    def shared_memory(self, rank_k: int, element_size: int) -> int:
        """Bytes that a program needs at most: ``k_up``, beside it latents or values, the queries, and what absorbed
        RoPE multiplies latents with.

        Of the tiles of ``k_up`` the first is always kept, the others pass through one more buffer.
        """
        rank = self.rank * min(ceil_div(rank_k, self.rank), 2)
        k_up = self.num_stages * rank * 2 * max(self.half, self.slow)  # one after the other
        values = self.tokens * (self.values + self.rows)
        absorbed = self.terms * self.rows * (self.rank + 2 * self.slow)
        return element_size * (k_up + max(self.tokens * rank, values) + self.rows * 2 * self.half + absorbed)

    @property
    def can_shrink(self) -> bool:
        return max(self.tokens, self.rank) > SMALLEST_TILE

    def shrunk(self) -> "Tiling":
        """Half as large where it is larger. Only a single tile of ranks is loaded ahead."""
        if self.tokens >= self.rank:
            return replace(self, tokens=self.tokens // 2)
        return replace(self, rank=self.rank // 2, num_stages=1)


def ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def power_of_two(size: int) -> int:
    """The next one."""
    return 1 << (size - 1).bit_length()


def padded(size: int) -> int:
    """The next power of two, at least ``SMALLEST_TILE``."""
    return max(SMALLEST_TILE, power_of_two(size))


def decode_tiling(
    shape: LayerShape, element_size: int, device: Device, queries: int = 1, has_key_norm: bool = False
) -> Tiling:
    """One program has ``queries`` queries of every head of a part of a group, a power of two of rows per KV head. Where
    there are several heads and few rows, or few pairs at a time, ``k_up`` is loaded ahead.
    """
    parts = group_parts(shape, queries, device)
    rows = decode_rows(shape, queries, parts)
    num_stages = 2 if parts < shape.group_size and (rows == SMALLEST_TILE or has_key_norm) else 1
    values = accumulated_numbers(shape.slot, rows, queries) // rows
    tiling = fitting_tiling(shape, rows, values, num_stages, element_size, device)
    if has_key_norm and queries > 1 and shape.slot is not None:
        tiling = replace(tiling, rank=min(tiling.rank, MOST["normalised packed keys of several queries"].rank))
    pairs = NORMALISED_PAIRS if has_key_norm else DECODE_PAIRS
    tiling = replace(tiling, half_tiles=half_tiles(tiling.half, pairs), queries=queries, parts=parts)
    return tiling.tuned(device.tiles(tuned_key("decode", shape, element_size, queries, has_key_norm)))


def accumulated_numbers(slot: SlotFormat | None, rows: int, queries: int) -> int:
    """Sums of latent values that the registers of one decoding program hold; fewer beside what unpacking takes."""
    if slot is None:
        return ACCUMULATED_NUMBERS
    if slot.has_scale_groups and tier_count(slot) > 2:
        return ACCUMULATED_NUMBERS // 4
    is_crowded = rows > SMALLEST_TILE and (queries > 1 or slot.has_scale_groups)
    return ACCUMULATED_NUMBERS // 2 if is_crowded else ACCUMULATED_NUMBERS


def tier_count(slot: SlotFormat) -> int:
    """Of keys or of values, whichever have more."""
    return max(len(slot.key.runs), len(slot.value.runs))


def decode_rows(shape: LayerShape, queries: int, parts: int = 1) -> int:
    """Of one program, padded."""
    return padded(power_of_two(shape.group_size // parts) * power_of_two(shape.queries_per_kv * queries))


def group_parts(shape: LayerShape, queries: int, device: Device) -> int:
    """In how many equal parts the heads of a group are taken, as few as leave a program its registers and heads of one
    key latent and one value latent. Every part loads its latents anew, from L2 where they run together; no key is
    rebuilt twice.
    """
    most_rows = ROWS_OF_ONE_QUERY if queries == 1 and device.shared_operands else ROWS_OF_SEVERAL_QUERIES
    fewest = max(shape.key_latents, shape.value_latents)
    divisors = (parts for parts in range(fewest, shape.group_size, fewest) if shape.group_size % parts == 0)
    return next((parts for parts in divisors if decode_rows(shape, queries, parts) <= most_rows), shape.group_size)


def programs_of_group(shape: LayerShape, tiling: Tiling) -> int:
    """Of one split: parts of its heads times parts of the latent values."""
    return tiling.parts * ceil_div(shape.rank_v, tiling.values_per_program)


def half_tiles(half: int, pairs: int) -> int:
    """In how many tiles decoding rebuilds ``half`` rotary pairs, ``pairs`` at a time."""
    return max(1, half // pairs)


def fitting_tiling(
    shape: LayerShape, rows: int, values: int, num_stages: int, element_size: int, device: Device
) -> Tiling:
    """The largest tiles whose operands fit into shared memory, with at most ``values`` sums of a row.

    Tiles of float32 stay small: it has no tensor cores, so that products are unrolled into scalar instructions.
    """
    most = MOST["16-bit numbers" if element_size <= 2 else "float32"]
    tokens, rank = most.tokens, most.rank
    if rows > SMALLEST_TILE:
        rank = min(rank, MOST["many rows"].rank)
    if not device.shared_operands:
        tokens = min(tokens, MOST["operands in registers"].tokens)
    tiling = Tiling(
        tokens=tokens,
        rank=min(padded(shape.rank_k), rank),
        half=padded(shape.head_dim // 2),
        rows=rows,
        values=min(padded(shape.rank_v), max(SMALLEST_TILE, values)),
        num_stages=num_stages,
    )
    tiling = in_small_products(tiling, shape.rank_v, shape.slot)
    while tiling.shared_memory(shape.rank_k, element_size) > device.shared_memory and tiling.can_shrink:
        tiling = tiling.shrunk()
    return tiling


def in_small_products(tiling: Tiling, rank_v: int, slot: SlotFormat | None) -> Tiling:
    """As many programs, each with several products with values."""
    if slot is not None:
        tiling = with_packed_latents(tiling, slot)
    programs = ceil_div(rank_v, tiling.values)
    values = min(tiling.values, MOST["any values"].values)
    return replace(tiling, values=values, value_tiles=ceil_div(ceil_div(rank_v, programs), values))


def with_packed_latents(tiling: Tiling, slot: SlotFormat) -> Tiling:
    """Tiles that leave unpacking its registers. Only a single tile of ranks is loaded ahead.

    Ranks are cut only where they are many or meet many rows, because what lies past the first tile of ranks is unpacked
    again for every head.
    """
    situation = packed_situation(slot, tiling.rows > SMALLEST_TILE)
    most, many_ranks = MOST[situation], tiling.rank > MOST["several packed tiers"].rank
    is_cut = tiling.rows > SMALLEST_TILE or many_ranks or situation == "scale groups in many tiers"
    rank = most.rank if is_cut else LARGE_TILE
    return replace(
        tiling,
        tokens=min(tiling.tokens, most.tokens),
        rank=min(tiling.rank, rank),
        num_stages=1 if rank < tiling.rank else min(tiling.num_stages, most.num_stages),
    )


def packed_situation(slot: SlotFormat, many_rows: bool) -> str:
    """The row of ``MOST`` for packed latents."""
    many_tiers = tier_count(slot) > 2
    if slot.has_scale_groups:
        return "scale groups in many tiers" if many_tiers else "scale groups"
    if many_rows or many_tiers:
        return "crowded packed latents"
    return "several packed tiers" if len(slot.key.runs) > 1 else "one packed tier"


def decode_splits(shape: LayerShape, tiling: Tiling, requests: int, max_seq_len: int, device: Device) -> int:
    """How many splits a context has, so that one wave of programs fills the device.

    Depends on no tensor's contents, so that a captured graph can be replayed for shorter contexts.
    """
    longest = max_seq_len if shape.cached_tokens is None else min(max_seq_len, shape.cached_tokens)
    programs = requests * shape.num_groups * programs_of_group(shape, tiling)
    return max(1, min(device.multiprocessors // programs, ceil_div(longest, tiling.tokens)))
