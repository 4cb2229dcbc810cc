"""Attention over codec slots on a GPU: products with matrices around the Triton kernels of this folder."""

from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.checks import check_cache, expect_dense_rows, expect_shape
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.gpu.codec.launches import CodecLaunches
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
    piece_numbers,
)
from palu_vllm.kernels.gpu.codec.prefill import CodecPrefill
from palu_vllm.kernels.gpu.codec.storing.put import CodeStore
from palu_vllm.kernels.gpu.launch import device_of
from palu_vllm.kernels.gpu.prefill.plan import Lengths
from palu_vllm.kernels.gpu.tiling import Device
from palu_vllm.kernels.interface import PagedBatch


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
        self.launches: dict[tuple, CodecLaunches] = {}
        self.known_caches: set[tuple] = set()
        self.codes = CodeStore(codec, self.levels, self.positions)
        self.prefill = CodecPrefill(codec, settings, self.constants, self.value_rows)
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
        self.check_cache(cache)
        if slot_mapping.shape[0]:
            self.codes.put(key, value, positions, cache, slot_mapping)

    def captures(self, queries: int) -> bool:
        """Where the table of positions is whole: one that grows would be elsewhere than a captured step reads."""
        return self.positions.whole is not None

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        self.check(query, cache, batch, out)
        if not query.shape[0] or not batch.seq_lens.shape[0]:
            return
        if batch.parts is None or batch.max_query_len <= MOST_QUERIES:
            self.decode(query, cache, batch, out)
            if batch.max_query_len > MOST_QUERIES:
                self.attend_many(query, cache, batch, out)
            return
        few, many, tokens = batch.parts.few, batch.parts.many, batch.parts.tokens
        if few:
            self.decode(query[:tokens], cache, few, out)
        if many:
            self.attend_many(query[tokens:], cache, many, out[tokens:])

    def attend_many(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        """The requests of many queries."""
        step = self.launches_for(query, cache).given | self.step_arguments(cache, batch)
        self.prefill.attend(query, batch, out, step, product_type(query), self.chip(query))

    def decode(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        """The requests of few queries; rows of others become any numbers."""
        if query.shape[0] <= self.pass_tokens:
            self.decode_pass(query, cache, batch, out)
            return
        for start, part in passes(batch, query.shape[0], self.pass_tokens):
            some = slice(start, start + self.pass_tokens)
            self.decode_pass(query[some], cache, part, out[some])

    def measure(self, query: torch.Tensor, out: torch.Tensor) -> None:
        """What a pass of decoding takes, and then the most that a prompt takes beside any other requests."""
        turned, means = self.into_basis(query[: self.pass_tokens])
        pieces = turned.new_empty(piece_numbers(self.codec.slot, *self.tiling_of(query)))
        values = torch.bmm(means.zero_(), self.value_rows)
        del turned, means, pieces, values  # which a pass holds to its end
        tokens, dtype = len(query), product_type(query)
        lengths = Lengths(tokens, tokens, tokens, max(tokens, self.settings.max_seq_len or 0))
        self.prefill.scratch(lengths, *self.prefill.plan(lengths, dtype, self.chip(query)), dtype, query.device)
        out.zero_()

    def check(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        """Raises ValueError where the operands of ``attend`` contradict the codec or each other."""
        codec, heads = self.codec, self.settings.num_heads
        expect_shape("query", query, (query.shape[0], heads, codec.key.sink.shape[1]))
        expect_shape("out", out, (out.shape[0], heads, codec.value.sink.shape[1]))
        expect_shape("query_start_loc", batch.query_start_loc, (batch.seq_lens.shape[0] + 1,))
        expect_dense_rows(block_table=batch.block_table)
        self.check_cache(cache)

    def check_cache(self, cache: torch.Tensor) -> None:
        """Of every kind of cache once."""
        of = cache.dtype, cache.shape, cache.stride(), cache.storage_offset()
        if of not in self.known_caches:
            check_cache(cache, self.codec.num_groups, self.codec.slot.bytes, packed=True)
            self.known_caches.add(of)

    def decode_pass(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        turned, means = self.into_basis(query)
        others = self.arguments(turned, cache, batch, means)
        launches = self.launches_for(query, cache)
        launches.decode(others, batch)
        launches.put_values(torch.bmm(means, self.value_rows), out, others)

    def into_basis(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries in the basis of codes, and room for the means of codes that they see."""
        kv_heads, dim = self.query_columns.shape[:2]
        heads = query.view(query.shape[0], kv_heads, -1, dim).transpose(0, 1)
        place: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
        by_kv_head = torch.empty(heads.shape, **place).copy_(heads).view(kv_heads, -1, dim)
        means = torch.empty(kv_heads, by_kv_head.shape[1], self.value_rows.shape[1], **place)
        return torch.bmm(by_kv_head, self.query_columns), means

    def tiling_of(self, query: torch.Tensor) -> tuple[CodecTiling, int]:
        """And the programs of decoding."""
        tiling = codec_tiling(self.codec.slot, product_type(query).itemsize, self.chip(query))
        return tiling, self.chip(query).multiprocessors * PROGRAMS

    def chip(self, query: torch.Tensor) -> Device:
        """What tiles are chosen for."""
        return self.device or device_of(query.device)

    def launches_for(self, query: torch.Tensor, cache: torch.Tensor) -> CodecLaunches:
        """Kernels for such queries and such a cache, made once."""
        strides, block_size = cache.stride(), cache.shape[2]
        of = query.dtype, strides, block_size
        if of not in self.launches:
            given = self.constants | {
                "DTYPE": triton_type(product_type(query)),
                "BLOCK_SIZE": block_size,
                "stride_cache_block": strides[0],
                "stride_cache_group": strides[1],
                "stride_cache_slot": strides[2],
            }
            self.launches[of] = CodecLaunches(given, self.codec.slot, self.codec.num_groups, *self.tiling_of(query))
        return self.launches[of]

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
            "FEATURES": self.positions.rows.shape[1],
            "VALUE_DIM": self.value_rows.shape[2],
        }

    def arguments(
        self, turned: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, means: torch.Tensor
    ) -> dict[str, Any]:
        """What differs from one call of decoding to the next, by the names that the kernels have for it."""
        return self.step_arguments(cache, batch) | {
            "query_ptr": turned,
            "means_ptr": means,
            "num_requests": batch.seq_lens.shape[0],
            "tokens_in_batch": means.shape[1] // self.queries_per_kv,
        }

    def step_arguments(self, cache: torch.Tensor, batch: PagedBatch) -> dict[str, Any]:
        """Those that prefill takes too."""
        blocks = self.positions.up_to(batch.max_seq_len)
        return {
            "cache_ptr": cache,
            "block_table_ptr": batch.block_table,
            "seq_lens_ptr": batch.seq_lens,
            "query_start_loc_ptr": batch.query_start_loc,
            "blocks_ptr": blocks,
            "num_positions": blocks.shape[0],
            "stride_block_table_request": batch.block_table.stride(0),
        }

    @property
    def queries_per_kv(self) -> int:
        return self.settings.num_heads // self.codec.num_kv_heads


def passes(batch: PagedBatch, tokens: int, most: int) -> Iterator[tuple[int, PagedBatch]]:
    """The batch in passes of at most ``most`` tokens: the first token of each, and the batch that it is. A request
    whose later queries are in another pass ends with its last query in this one.
    """
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
