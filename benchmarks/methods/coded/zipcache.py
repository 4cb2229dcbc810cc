"""ZipCache (He et al. 2024, arXiv 2405.14256): tokens that get much attention in more bits, the others in fewer.

Keys per channel, values per token after each channel is divided by the root of its largest magnitude.
"""

from dataclasses import dataclass

import torch

from benchmarks.methods.coded.codes import Codes, per_channel, per_token, read_per_channel, read_per_token
from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect
from benchmarks.methods.kept.pruning import chosen, received_attention


@dataclass(frozen=True, kw_only=True)
class ZipCache(Method):
    """A token's saliency is the mean attention that those queries pay which can see it. Of a prompt all queries count
    (published: a tenth, as probes); new tokens wait in full precision until there are ``streaming_gap`` of them, and
    are then judged by the queries of that step, among themselves.
    """

    name = "zipcache"

    k_important_bit: int = 4
    v_important_bit: int = 4
    k_unimportant_bit: int = 2
    v_unimportant_bit: int = 2
    unimportant_ratio: float = 0.4
    streaming_gap: int = 100

    def __post_init__(self) -> None:
        expect(0 <= self.unimportant_ratio <= 1, f"unimportant_ratio is {self.unimportant_ratio}, expected 0 to 1")
        expect(self.streaming_gap > 1, "streaming_gap has to be above 1")

    def store(self, layer: Layer) -> Store:
        return ZipCacheStore(self, layer)


@dataclass(frozen=True)
class Chunk:
    """Tokens of one importance, compressed together."""

    keys: Codes
    values: Codes
    channel_scale: torch.Tensor  # float16 [kv_heads, 1, head_dim]

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor, k_bits: int, v_bits: int) -> "Chunk":
        """``[kv_heads, tokens, head_dim]`` each, at least one token."""
        scale = values.float().abs().amax(1, keepdim=True).sqrt().clamp(min=1e-3).half()
        normal = values.float() / scale.float()
        width = values.shape[0] * values.shape[2]
        return cls(per_channel(keys.float(), k_bits, keys.shape[1]), per_token(normal, v_bits, width), scale)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.channel_scale.float()
        return read_per_channel(self.keys), read_per_token(self.values, scale.shape[0]) * scale


class ZipCacheStore(Store):
    """Chunks in any order, which attention does not mind, so no index is kept; and a buffer of new tokens."""

    def __init__(self, method: ZipCache, layer: Layer) -> None:
        self.method, self.layer = method, layer
        self.chunks: list[Chunk] = []
        self.buffer = DenseStore(layer)

    def append(self, tokens: Tokens) -> None:
        self.buffer.append(tokens)
        length = self.buffer.keys.shape[1]
        if length and (not self.chunks or length >= self.method.streaming_gap):
            keys, values = self.buffer.read()
            positions = torch.arange(length, device=keys.device).expand(keys.shape[0], -1)
            self._compress(Tokens(keys.to(tokens.queries), values.to(tokens.queries), tokens.queries, positions))
            self.buffer = DenseStore(self.layer)

    def _compress(self, tokens: Tokens) -> None:
        """``tokens`` have the queries of their newest only, unless they are a prompt."""
        method, last = self.method, tokens.queries.shape[1]
        order = saliency(tokens, last, self.layer.scale).argsort(descending=True, stable=True)
        important = round((1 - method.unimportant_ratio) * len(order))
        for which, k_bits, v_bits in (
            (order[:important], method.k_important_bit, method.v_important_bit),
            (order[important:], method.k_unimportant_bit, method.v_unimportant_bit),
        ):
            if len(which):
                kept = chosen(tokens, which.sort().values.expand(tokens.keys.shape[0], -1))
                self.chunks.append(Chunk.of(kept.keys, kept.values, k_bits, v_bits))

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [chunk.read() for chunk in self.chunks] + [tuple(each.float() for each in self.buffer.read())]
        return torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1)


def saliency(tokens: Tokens, last: int, scale: float) -> torch.Tensor:
    """Attention that each token gets from the newest ``last`` queries, over how many of them see it: ``[tokens]``,
    mean of the heads.
    """
    length = tokens.keys.shape[1]
    queries = tokens.queries.new_zeros(tokens.queries.shape[0], length, tokens.queries.shape[2])
    queries[:, length - last :] = tokens.queries
    received = received_attention(tokens._replace(queries=queries), last, scale).mean(0)
    return received / torch.arange(length, 0, -1, device=received.device).clamp(max=last)
