"""This is latent attention in vectorised torch: the path that serves on machines without a GPU.

Works through the context tile by tile with an online softmax, always in float32. One query per request (decoding) is
the fast case: tiles of all requests form one sequence of equal pieces of work, however unequal the requests are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.checks import check_attend, check_layer
from palu_vllm.kernels.cpu.absorbed import AbsorbedScores
from palu_vllm.kernels.cpu.tiles import KeySource, Tiles, cover, pair_up, scratch
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch
from palu_vllm.kernels.reference import store_latents
from palu_vllm.kernels.value_up import apply_v_up

DECODE_TILE = 128  # tokens; small, because the last tile of every request is partly wasted
DECODE_FLOATS = 2**21  # latents, keys and scores of the tiles that are worked on together
PREFILL_RUN = 256  # queries that share one rebuild of a tile's keys
PREFILL_TILES = range(256, 2048)  # tokens; the fewer queries, the longer
PREFILL_SCORES = 2**19
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Queries:
    """Runs of equally many queries, one run per owner."""

    paired: torch.Tensor  # [owners, num_kv_heads, queries_per_kv, run, head_dim] float32, scaled
    positions: torch.Tensor  # [owners, run] int64, ascending by one
    block_table: torch.Tensor  # [owners, max_blocks]


def hide(scores: torch.Tensor, queries: Queries, tiles: Tiles, sliding_window: int | None) -> None:
    """Sets ``scores [num_groups_v, tiles, heads * run, tile_tokens]`` to minus infinity where a query sees no key."""
    # of shape [tiles, run, tile_tokens]
    distance = queries.positions[tiles.owner].unsqueeze(-1) - tiles.positions.unsqueeze(1)
    hidden = (distance < 0) | tiles.unused.unsqueeze(1)
    if sliding_window is not None:
        hidden |= distance >= sliding_window
    if hidden.any():
        per_query = scores.unflatten(2, (-1, hidden.shape[1]))
        per_query.masked_fill_(hidden.unsqueeze(1), float("-inf"))


@dataclass(frozen=True)
class Softmax:
    """Running state of ``sum_t exp(score_t) value_t``, per group of V, owner and query of the group."""

    peak: torch.Tensor  # [num_groups_v, owners, queries]
    total: torch.Tensor  # [num_groups_v, owners, queries]
    values: torch.Tensor  # [num_groups_v, owners, queries, rank_v]

    @classmethod
    def empty(cls, num_groups: int, owners: int, queries: int, rank_v: int) -> "Softmax":
        peak = torch.full((num_groups, owners, queries), LOWEST)
        return cls(peak, torch.zeros_like(peak), torch.zeros(num_groups, owners, queries, rank_v))

    def add(self, owner: torch.Tensor, scores: torch.Tensor, values: torch.Tensor) -> None:
        """Adds tiles: ``owner [tiles]``, ``scores [num_groups_v, tiles, queries, tile_tokens]`` (overwritten; minus
        infinity where hidden) and ``values [num_groups_v * tiles, tile_tokens, rank_v]``, finite everywhere.
        """
        tile_peak = scores.amax(-1)
        peak = self.peak.scatter_reduce(1, owner.view(1, -1, 1).expand_as(tile_peak), tile_peak, "amax")
        shrink = (self.peak - peak).exp_()
        weights = scores.sub_(peak[:, owner].unsqueeze(-1)).exp_()
        sums = scratch.take("sums", *weights.shape[:3], values.shape[-1])
        torch.bmm(weights.flatten(0, 1), values, out=sums.flatten(0, 1))
        self.total.mul_(shrink).index_add_(1, owner, weights.sum(-1))
        self.values.mul_(shrink.unsqueeze(-1)).index_add_(1, owner, sums)
        self.peak.copy_(peak)

    def result(self) -> torch.Tensor:
        """The weighted means ``[num_groups_v, owners, queries, rank_v]``."""
        return self.values / self.total.unsqueeze(-1)


def by_value_group(scores: torch.Tensor, shape: LayerShape) -> torch.Tensor:
    """``[num_groups_k, tiles, heads of a group, tile_tokens]`` by the groups of V, a copy where they differ."""
    if shape.group_size_k == shape.group_size_v:
        return scores
    per_head = scores.unflatten(2, (shape.group_size_k, -1)).transpose(1, 2).flatten(0, 1)
    return per_head.unflatten(0, (-1, shape.group_size_v)).transpose(1, 2).flatten(2, 3)


def tiling(shape: LayerShape, run: int, block_size: int) -> tuple[int, int]:
    """Tokens of a tile, a multiple of ``block_size``, and how many tiles are worked on together, for a run length."""
    if run > 1:
        tokens = min(max(PREFILL_SCORES // (shape.num_heads * run), PREFILL_TILES.start), PREFILL_TILES.stop)
        return max(1, tokens // block_size) * block_size, 1
    tile_tokens = max(1, DECODE_TILE // block_size) * block_size
    latents = shape.num_groups_k * shape.rank_k + shape.num_groups_v * shape.rank_v
    return tile_tokens, max(1, DECODE_FLOATS // tile_tokens // (latents + shape.num_kv_heads * shape.head_dim))


class TorchAttention:
    """``store`` and ``attend`` of ``operands`` on the CPU. Caches of float32, bfloat16 and float16.

    The scratch of ``attend`` does not grow with the context, but for two int64 per tile of it: about 2 *
    ``DECODE_FLOATS`` floats, or a few times the scores of ``PREFILL_RUN`` queries in a tile, or one block.
    Raises ValueError where ``shape``, ``rebuild`` and ``v_up`` contradict each other, or operands contradict them.
    """

    def __init__(self, shape: LayerShape, rebuild: KeyRebuild, v_up: torch.Tensor | None = None) -> None:
        check_layer(shape, rebuild, v_up)
        self.shape = shape
        self.v_up = v_up
        self.source = KeySource(shape, rebuild)
        self.absorbed: dict[int, AbsorbedScores | None] = {}  # by tokens of a decoding tile

    def store(
        self, latent_k: torch.Tensor, latent_v: torch.Tensor, cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        store_latents(latent_k, latent_v, cache, slot_mapping, self.shape.slot)

    def captures(self, queries: int) -> bool:
        return False

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        check_attend(query, cache, batch, out, self.shape, self.v_up)
        starts = batch.query_start_loc.long()
        query_lens = starts.diff()
        single = (query_lens == 1).nonzero().flatten()
        if len(single):
            self._attend_rows(query, cache, batch, out, single, starts[single, None])
        for request in (query_lens > 1).nonzero().flatten():
            for rows in torch.arange(starts[request], starts[request + 1]).split(PREFILL_RUN):
                self._attend_rows(query, cache, batch, out, request[None], rows[None])

    def _attend_rows(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        batch: PagedBatch,
        out: torch.Tensor,
        requests: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Attends from ``rows [owners, run]`` of ``query``, where every owner is one of ``requests [owners]``."""
        shape = self.shape
        owners, run = rows.shape
        after_last = batch.query_start_loc[requests + 1].long()
        paired = (
            pair_up(query[rows], shape.rotary_dim).mul_(shape.scale).transpose(1, 2)
        )  # [owners, num_heads, run, head_dim]
        queries = Queries(
            paired=paired.unflatten(1, (shape.num_kv_heads, shape.queries_per_kv)),
            positions=rows + (batch.seq_lens[requests].long() - after_last)[:, None],
            block_table=batch.block_table[requests].long(),
        )
        means = self._walk(queries, cache).unflatten(2, (-1, run))
        values = means.permute(1, 3, 0, 2, 4).flatten(2, 3)  # [owners, run, num_heads, rank_v]
        if self.v_up is not None:
            values = apply_v_up(values.flatten(0, 1), self.v_up, shape).unflatten(0, rows.shape)
        out[rows] = values.to(out.dtype)

    def _walk(self, queries: Queries, cache: torch.Tensor) -> torch.Tensor:
        """The attention of ``queries`` over their contexts: ``[num_groups_v, owners, queries of a group, rank_v]``."""
        shape, block_size = self.shape, cache.shape[2]
        owners, run = queries.positions.shape
        tile, tiles_per_step = tiling(shape, run, block_size)
        first, last = torch.zeros(owners, dtype=torch.int64), queries.positions[:, -1]
        state = Softmax.empty(shape.num_groups_v, owners, shape.num_heads // shape.num_groups_v * run, shape.rank_v)
        if shape.num_sinks:
            whole_blocks = -(-shape.num_sinks // block_size) * block_size
            tiles = cover(first, last.clamp(max=shape.num_sinks - 1), min(tile, whole_blocks), tiles_per_step)
            self._add(state, self._before_sinks(queries), cache, tiles, None)
        if shape.sliding_window is not None:
            first = (queries.positions[:, 0] - shape.sliding_window + 1).clamp(min=shape.num_sinks)
        self._add(state, queries, cache, cover(first, last, tile, tiles_per_step), shape.sliding_window)
        return state.result()

    def _before_sinks(self, queries: Queries) -> Queries:
        """Turned back where sinks shift: that changes the distance to a sink as moving the sink does."""
        shape = self.shape
        if not shape.shift_sinks:
            return queries
        distances = (queries.positions + 1 - shape.cached_tokens).clamp(min=0)
        return replace(queries, paired=self.source.turned_back(queries.paired, distances))

    def _add(
        self, state: Softmax, queries: Queries, cache: torch.Tensor, steps: Iterator[Tiles], window: int | None
    ) -> None:
        """Adds what ``queries`` see of tiles; sinks have no ``window``, and are too few to absorb anything."""
        for tiles in steps:
            blocks = tiles.blocks(queries.block_table, cache.shape[2])
            latent_k, latent_v = self.source.latents(cache, blocks, tiles.unused.flatten())
            absorbs = queries.positions.shape[1] == 1 and (window is not None or not self.shape.num_sinks)
            scores = self._scores(queries, tiles, latent_k, absorbs)
            hide(scores, queries, tiles, window)
            state.add(tiles.owner, scores, latent_v.unflatten(1, (-1, tiles.positions.shape[1])).flatten(0, 1))

    def _scores(self, queries: Queries, tiles: Tiles, latent_k: torch.Tensor, absorbs: bool) -> torch.Tensor:
        """``[num_groups_v, tiles, queries of a group, tile_tokens]`` of ``latent_k [num_groups_k, tokens, rank_k]``."""
        shape = self.shape
        count, tile = tiles.positions.shape
        absorbed = self._absorbed_scores(tile) if absorbs else None
        if absorbed:
            return by_value_group(absorbed.scores(queries.paired.squeeze(3), tiles, latent_k), shape)
        keys = self.source.rotate(self.source.keys(latent_k), tiles.positions.flatten())
        # of shape [num_kv_heads * tiles, queries_per_kv * run, head_dim], and scores [.., .., tile]
        paired = queries.paired[tiles.owner].transpose(0, 1).flatten(2, 3).flatten(0, 1)
        scores = scratch.take("scores", len(paired), paired.shape[1], tile)
        torch.bmm(paired, keys.view(-1, tile, shape.head_dim).transpose(1, 2), out=scores)
        return scores.view(shape.num_groups_v, shape.group_size_v, count, -1, tile).transpose(1, 2).flatten(2, 3)

    def _absorbed_scores(self, tile_tokens: int) -> AbsorbedScores | None:
        if tile_tokens not in self.absorbed:
            self.absorbed[tile_tokens] = AbsorbedScores.where_cheaper(self.source, tile_tokens)
        return self.absorbed[tile_tokens]
