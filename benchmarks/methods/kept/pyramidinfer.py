"""PyramidInfer (Yang et al. 2024, arXiv 2405.12532): the deeper the layer, the fewer tokens it keeps, of the prompt and
of what is decoded after it.
"""

import math
from dataclasses import dataclass

import torch

from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect
from benchmarks.methods.kept.pruning import chosen, paid_attention, received_attention

STRATEGIES = ("linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class PyramidInfer(Method):
    """The share of the prompt that a layer keeps falls from 1 towards ``prefill_decay_ratio``, but for
    ``min_context_length`` tokens. The newest ``recent_ratio`` of the prompt stay, and judge the others by their
    attention, the newest ``distance_weight`` times as much as the oldest of them; all heads keep the same tokens, the
    first ``streamingllm_sink_len`` always among them.

    While decoding, the newest ``recent_ratio`` of all tokens so far stay, and judge those decoded before them, as soon
    as there are ``exceed_length_to_compress``: of these ``gen_compress_ratio`` stay, times a share that falls with
    depth from 1 towards ``gen_decay_ratio``, but at least one. They are not judged again.

    The cache only: published, deeper layers do not compute dropped tokens of the prompt either.
    """

    name = "pyramidinfer"

    recent_ratio: float = 0.2
    prefill_decay_ratio: float = 0.3
    prefill_decay_strategy: str = "cosine"
    min_context_length: int = 64
    streamingllm_sink_len: int = 4
    distance_weight: float = 1.2
    gen_decay_ratio: float = 0.1
    gen_decay_strategy: str = "cosine"
    gen_compress_ratio: float = 0.9
    exceed_length_to_compress: int = 16

    def __post_init__(self) -> None:
        for name in ("recent_ratio", "prefill_decay_ratio", "gen_decay_ratio", "gen_compress_ratio"):
            expect(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("prefill_decay_strategy", "gen_decay_strategy"):
            known = getattr(self, name) in STRATEGIES
            expect(known, f"{name} is {getattr(self, name)!r}, expected one of {STRATEGIES}")
        expect(self.exceed_length_to_compress > 0, "exceed_length_to_compress has to be positive")

    def kept(self, tokens: Tokens, layer: Layer) -> Tokens:
        """The tokens of a prompt that stay, in their order."""
        kv_heads, length, _ = tokens.keys.shape
        recent = max(1, int(self.recent_ratio * length))
        share = falling(self.prefill_decay_ratio, self.prefill_decay_strategy, layer)
        capacity = max(self.min_context_length, round(share * length), recent)
        if capacity >= length:
            return tokens
        weights = torch.linspace(1, self.distance_weight, recent, device=tokens.keys.device)
        scores = received_attention(tokens, recent, layer.scale, weights).mean(0)[: length - recent]
        scores[: self.streamingllm_sink_len] = torch.inf
        best = scores.topk(capacity - recent).indices.sort().values
        newest = torch.arange(length - recent, length, device=best.device)
        return chosen(tokens, torch.cat([best, newest]).expand(kv_heads, -1))

    def store(self, layer: Layer) -> Store:
        return PyramidStore(self, layer)


def falling(lowest: float, strategy: str, layer: Layer) -> float:
    """From 1 in the first layer towards ``lowest`` in the last."""
    depth = layer.index / layer.num_layers
    left = 1 - depth if strategy == "linear" else (math.cos(math.pi * depth) + 1) / 2
    return lowest + (1 - lowest) * left


class PyramidStore(Store):
    """The kept prompt, then what was decoded. Of the newest ``places`` tokens, which have not been judged yet, two sums
    over queries are held, float32 ``[2, places]``, and count: the attention of each query, and the same times the
    query's place among them. From both follows the sum with any weights that rise evenly.

    Tokens are judged in blocks of ``exceed_length_to_compress``, by the queries behind their block.
    """

    def __init__(self, method: PyramidInfer, layer: Layer) -> None:
        self.method, self.layer = method, layer
        self.inner = DenseStore(layer)
        self.seen = 0  # tokens, the dropped ones too
        self.sums = torch.empty(2, 0)

    def append(self, tokens: Tokens) -> None:
        new = tokens.keys.shape[1]
        if not self.seen:
            self.inner.append(self.method.kept(tokens, self.layer))
        else:
            self._observe(tokens)
            self.inner.append(tokens)
        self.seen += new
        block, recent = self.method.exceed_length_to_compress, int(self.method.recent_ratio * self.seen)
        while self.sums.shape[1] >= block + 1 + recent:
            self._judge(block)

    def _observe(self, tokens: Tokens) -> None:
        """Adds what the queries of a step pay to tokens behind the prompt."""
        before, new = self.inner.keys.shape[1], tokens.keys.shape[1]
        keys = torch.cat([self.inner.keys.to(tokens.keys), tokens.keys], 1)
        waiting = self.sums.shape[1]
        paid = paid_attention(tokens.queries, keys, before, self.layer.scale).mean(0)[:, before - waiting :].float()
        self.sums = torch.cat([self.sums.to(paid.device), paid.new_zeros(2, new)], 1)
        queries = torch.arange(waiting, waiting + new, device=paid.device)
        block = self.method.exceed_length_to_compress
        ends = (torch.arange(waiting + new, device=paid.device) // block + 1) * block
        paid = paid.masked_fill(queries[:, None] < ends, 0)
        self.sums += torch.stack([paid.sum(0), (paid * queries[:, None]).sum(0)])

    def _judge(self, block: int) -> None:
        """Keeps the best of the oldest block, and counts places from behind it."""
        waiting = self.sums.shape[1]
        rise = (self.method.distance_weight - 1) / max(1, waiting - block - 1)
        moved = self.sums[1] - block * self.sums[0]
        share = self.method.gen_compress_ratio * falling(
            self.method.gen_decay_ratio, self.method.gen_decay_strategy, self.layer
        )
        best = (self.sums[0] + rise * moved)[:block].topk(max(1, int(block * share))).indices.sort().values
        first = self.inner.keys.shape[1] - waiting
        kept = [torch.arange(first), first + best, torch.arange(first + block, first + waiting)]
        places = torch.cat([each.to(best.device) for each in kept])
        self.inner.keys, self.inner.values = self.inner.keys[:, places], self.inner.values[:, places]
        self.sums = torch.stack([self.sums[0], moved])[:, block:].clone()

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.read()
