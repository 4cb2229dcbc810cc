"""Attention over codec slots on a GPU: products with matrices around the Triton kernels of this folder."""

from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.checks import check_cache, expect_dense_rows, expect_shape
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.gpu.arguments import taken_by
from palu_vllm.kernels.gpu.codec.decode import decode_codes_kernel
from palu_vllm.kernels.gpu.codec.layout import code_tiles, column_count
from palu_vllm.kernels.gpu.codec.operands import (
    LOG2_E,
    columns_of_queries,
    device_positions,
    level_table,
    rows_of_values,
)
from palu_vllm.kernels.gpu.codec.plan import (
    MOST_QUERIES,
    PROGRAMS,
    CodecTiling,
    codec_tiling,
    pass_tokens,
    row_tiles,
)
from palu_vllm.kernels.gpu.codec.prefill import prefill_codes_kernel
from palu_vllm.kernels.gpu.codec.put import CodeStore
from palu_vllm.kernels.gpu.codec.reduce import reduce_pieces_kernel
from palu_vllm.kernels.gpu.codec.work import number_items_kernel
from palu_vllm.kernels.gpu.launch import device_of
from palu_vllm.kernels.gpu.tiling import Device, ceil_div
from palu_vllm.kernels.interface import PagedBatch

REDUCED_COLUMNS, REDUCED_PIECES = 128, 16  # of one program that joins pieces


class TritonCodecAttention:
    """``store`` and ``attend`` of ``kernels.codec.interface``. Neither reads a tensor on the host.

    ``device`` is what tiles are chosen for where it is not that of the cache: compiling for another. Raises ValueError
    where operands do not fit.
    """

    def __init__(self, codec: LayerCodec, settings: CodecSettings, device: Device | None = None) -> None:
        self.codec, self.settings, self.device = codec, settings, device
        self.query_columns = columns_of_queries(codec, settings)
        self.value_rows = rows_of_values(codec)
        place = self.query_columns.device
        self.levels = level_table().to(place)
        self.positions = device_positions(codec.frequencies, place)
        if settings.max_seq_len:
            self.positions.fit(settings.max_seq_len)
        self.constants = self.layer_constants()
        self.codes = CodeStore(codec, self.levels, self.positions)
        columns = self.query_columns.shape[2] + self.value_rows.shape[1]
        self.pass_tokens = pass_tokens(settings.num_heads, columns)

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        check_cache(cache, self.codec.num_groups, self.codec.slot.bytes, packed=True)
        tokens = len(slot_mapping)
        if tokens:
            self.codes.put(key[:tokens], value[:tokens], positions[:tokens], cache, slot_mapping)

    def captures(self, queries: int) -> bool:
        """Where the table of positions is whole: one that grows would be elsewhere than a captured step reads."""
        return self.positions.whole is not None

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        self.check(query, cache, batch, out)
        if not len(query) or not len(batch.seq_lens):
            return
        for start, part in passes(batch, len(query), self.pass_tokens):
            some = slice(start, start + self.pass_tokens)
            self.attend_pass(query[some], cache, part, out[: len(query)][some])

    def measure(self, query: torch.Tensor, out: torch.Tensor) -> None:
        """What one pass takes, without its kernels."""
        rows = slice(min(len(query), self.pass_tokens))
        turned, means = self.into_basis(query[rows])
        tiling, programs = self.tiling_of(query)
        pieces = self.new_pieces(means, tiling, programs)
        self.out_of_basis(means.zero_(), torch.zeros((), device=out.device), out[rows])
        del turned, pieces  # which a pass holds to its end
        out.zero_()

    def check(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        """Raises ValueError where the operands of ``attend`` contradict the codec or each other."""
        codec, heads = self.codec, self.settings.num_heads
        expect_shape("query", query, (len(query), heads, codec.key.sink.shape[1]))
        expect_shape("out", out, (len(out), heads, codec.value.sink.shape[1]))
        expect_shape("query_start_loc", batch.query_start_loc, (len(batch.seq_lens) + 1,))
        expect_dense_rows(block_table=batch.block_table)
        check_cache(cache, codec.num_groups, codec.slot.bytes, packed=True)

    def attend_pass(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        turned, means = self.into_basis(query)
        tiling, programs = self.tiling_of(query)
        given = self.arguments(turned, cache, batch, means) | {"DTYPE": triton_type(product_type(query))}
        given |= {"TILE_TOKENS": tiling.tokens, "TILE_ROWS": tiling.rows}
        self.decode(given, tiling, programs)
        if batch.max_query_len > MOST_QUERIES:
            self.prefill(given, tiling, batch)
        self.out_of_basis(means, batch.query_start_loc[-1], out)

    def tiling_of(self, query: torch.Tensor) -> tuple[CodecTiling, int]:
        """And the programs of decoding."""
        device = self.device or device_of(query.device)
        tiling = codec_tiling(self.codec.slot, product_type(query).itemsize, device)
        return tiling, device.multiprocessors * PROGRAMS

    def into_basis(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries in the basis of codes, and room for the means of codes that they see."""
        turned = torch.bmm(self.by_kv_head(query.float()), self.query_columns)
        return turned, turned.new_empty((*turned.shape[:2], self.value_rows.shape[1]))

    def out_of_basis(self, means: torch.Tensor, queries: torch.Tensor, out: torch.Tensor) -> None:
        """Values of the means, into the first ``queries`` rows."""
        values = torch.bmm(means, self.value_rows).unflatten(1, (len(out), -1)).transpose(0, 1).flatten(1, 2)
        is_query = torch.arange(len(out), device=out.device) < queries
        out.copy_(torch.where(is_query[:, None, None], values.to(out.dtype), out))

    def by_kv_head(self, heads: torch.Tensor) -> torch.Tensor:
        """``[tokens, num_heads, dim]`` to ``[kv_heads, tokens * queries_per_kv, dim]``."""
        return heads.unflatten(1, (self.codec.num_kv_heads, -1)).transpose(0, 1).flatten(1, 2)

    def layer_constants(self) -> dict[str, Any]:
        """What the kernels are given in every step."""
        codec, slot, settings = self.codec, self.codec.slot, self.settings
        return {
            "levels_ptr": self.levels,
            "sinks_ptr": None if settings.sinks is None else settings.sinks.float() * LOG2_E,
            "GROUP_SIZE": codec.num_kv_heads // codec.num_groups,
            "QUERIES_PER_KV": self.queries_per_kv,
            "TILES_K": code_tiles(slot.key, slot.key_start),
            "TILES_V": code_tiles(slot.value, slot.value_start),
            "COLUMNS_K": column_count(slot.key),
            "COLUMNS_V": column_count(slot.value),
            "SLIDING_WINDOW": settings.sliding_window,
            "SOFT_CAP_LOG2": settings.soft_cap * LOG2_E if settings.soft_cap else None,
        }

    def arguments(
        self, turned: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, means: torch.Tensor
    ) -> dict[str, Any]:
        """What the kernels of decoding and of prefill have in common, by name."""
        blocks = self.positions.up_to(batch.max_seq_len)
        return self.constants | {
            "query_ptr": turned,
            "cache_ptr": cache,
            "block_table_ptr": batch.block_table,
            "seq_lens_ptr": batch.seq_lens,
            "query_start_loc_ptr": batch.query_start_loc,
            "blocks_ptr": blocks,
            "means_ptr": means,
            "num_positions": len(blocks),
            "tokens_in_batch": means.shape[1] // self.queries_per_kv,
            "stride_cache_block": cache.stride(0),
            "stride_cache_group": cache.stride(1),
            "stride_cache_slot": cache.stride(2),
            "stride_block_table_request": batch.block_table.stride(0),
            "BLOCK_SIZE": cache.shape[2],
            "FEATURES": blocks.shape[1],
        }

    @property
    def queries_per_kv(self) -> int:
        return self.settings.num_heads // self.codec.num_kv_heads

    @property
    def heads(self) -> int:
        """Query heads of a group."""
        return self.settings.num_heads // self.codec.num_groups

    def decode(self, given: dict[str, Any], tiling: CodecTiling, programs: int) -> None:
        """The requests of at most ``MOST_QUERIES`` queries."""
        seq_lens, columns = given["seq_lens_ptr"], given["COLUMNS_V"]
        given = given | self.new_pieces(given["means_ptr"], tiling, programs)
        given |= {
            "num_requests": len(seq_lens),
            "item_starts_ptr": seq_lens.new_empty(len(seq_lens) + 1, dtype=torch.int32),
        }
        number_items_kernel[(1,)](
            **taken_by(number_items_kernel, given),
            num_groups=self.codec.num_groups, HEADS=self.heads, MOST_QUERIES=MOST_QUERIES, TILE_REQUESTS=256,
            num_warps=4,
        )  # fmt: skip
        decode_codes_kernel[(programs,)](**given, num_groups=self.codec.num_groups, **compiled_with(tiling))
        reduce_pieces_kernel[(programs, tiling.rows, ceil_div(columns, REDUCED_COLUMNS))](
            **taken_by(reduce_pieces_kernel, given),
            TILE_COLUMNS=REDUCED_COLUMNS, TILE_PIECES=REDUCED_PIECES, num_warps=4,
        )  # fmt: skip

    def new_pieces(self, like: torch.Tensor, tiling: CodecTiling, programs: int) -> dict[str, torch.Tensor]:
        """Room for sums of requests that several programs share."""
        columns = column_count(self.codec.slot.value)
        return {
            "piece_ptr": like.new_empty(2 * programs, tiling.rows, columns),
            "piece_state_ptr": like.new_empty(2 * programs, 3, tiling.rows),
        }

    def prefill(self, given: dict[str, Any], tiling: CodecTiling, batch: PagedBatch) -> None:
        """The requests of more queries."""
        grid = row_tiles(batch.max_query_len, self.heads, tiling.rows), self.codec.num_groups, len(batch.seq_lens)
        prefill_codes_kernel[grid](**given, LEAST_QUERIES=MOST_QUERIES + 1, **compiled_with(tiling))


def passes(batch: PagedBatch, tokens: int, most: int) -> Iterator[tuple[int, PagedBatch]]:
    """The batch in passes of at most ``most`` tokens: the first token of each, and the batch that it is. A request
    whose later queries are in another pass ends with its last query in this one.
    """
    if tokens <= most:
        yield 0, batch
        return
    for start in range(0, tokens, most):
        count = min(most, tokens - start)
        starts = batch.query_start_loc.clamp(start, start + count)
        later = batch.query_start_loc[1:] - batch.query_start_loc[1:].clamp(max=start + count)
        longest = min(batch.max_query_len, count)
        yield start, PagedBatch(batch.block_table, batch.seq_lens - later, starts - start, longest, batch.max_seq_len)


def product_type(query: torch.Tensor) -> torch.dtype:
    """Of the operands of products: that of the query, but no bfloat16 on a CPU, where Triton's interpreter errs."""
    return torch.float32 if query.dtype == torch.bfloat16 and query.device.type == "cpu" else query.dtype


def triton_type(dtype: torch.dtype) -> tl.dtype:
    return getattr(tl, str(dtype).removeprefix("torch."))


def compiled_with(tiling: CodecTiling) -> dict[str, int]:
    return {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
