"""The sizes of one layer of a compressed checkpoint. Imports nothing heavier than the configuration."""

from dataclasses import dataclass
from math import gcd
from typing import Literal, Self

from palu_vllm.format.config import AttentionGeometry, PaluConfig

RANK_STEP = 16  # what ranks are multiples of


def rank_step(full_rank: int) -> int:
    """``RANK_STEP``, or the largest power of two below it that divides the full rank (tiny models)."""
    return gcd(RANK_STEP, full_rank)


@dataclass(frozen=True)
class LayerShape:
    """One layer's view of the configuration: everything that serving code asks about a layer.

    One that is ``shared`` reads an earlier layer's latents; its sizes are those of that layer.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    group_size_k: int
    group_size_v: int
    rank_k: int
    rank_v: int
    value_path: Literal["fused", "factored", "uncompressed"]
    qk_norm: bool = False
    shared: bool = False

    @classmethod
    def of(cls, palu: PaluConfig, geometry: AttentionGeometry, layer: int) -> Self:
        uncompressed = palu.rank_v[layer] == palu.group_size_v * geometry.head_dim
        return cls(
            num_heads=geometry.num_heads,
            num_kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            group_size_k=palu.group_size_k,
            group_size_v=palu.group_size_v,
            rank_k=palu.rank_k[layer],
            rank_v=palu.rank_v[layer],
            value_path="uncompressed" if uncompressed else palu.value_path,
            qk_norm=palu.qk_norm,
            shared=palu.source_layer(layer) != layer,
        )

    @property
    def group_size(self) -> int:
        """KV heads of one slot of the cache."""
        return max(self.group_size_k, self.group_size_v)

    @property
    def key_latents(self) -> int:
        """Groups of K in one slot."""
        return self.group_size // self.group_size_k

    @property
    def value_latents(self) -> int:
        """Groups of V in one slot."""
        return self.group_size // self.group_size_v

    @property
    def num_groups_k(self) -> int:
        return self.num_kv_heads // self.group_size_k

    @property
    def num_groups_v(self) -> int:
        return self.num_kv_heads // self.group_size_v

    @property
    def full_rank_k(self) -> int:
        """``group_size_k * head_dim``: the rank at which nothing is lost."""
        return self.group_size_k * self.head_dim

    @property
    def full_rank_v(self) -> int:
        return self.group_size_v * self.head_dim

    @property
    def has_k_up(self) -> bool:
        return self.rank_k < self.full_rank_k

    @property
    def output_width(self) -> int:
        """Input features of the stored output projection."""
        return self.num_heads * (self.rank_v if self.value_path == "fused" else self.head_dim)
