"""The sizes of one layer, for its checkpoint, its cache and its kernels. Standard library only."""

from dataclasses import dataclass, replace
from math import gcd
from typing import Literal, Self

from palu_vllm.format.latent_format import SlotFormat

RANK_STEP = 16  # what ranks are multiples of


def rank_step(full_rank: int) -> int:
    """``RANK_STEP``, or the largest power of two below it that divides the full rank (tiny models)."""
    return gcd(RANK_STEP, full_rank)


@dataclass(frozen=True)
class LayerShape:
    """Everything that code outside the configuration asks about a layer, from its checkpoint to its kernels.

    A group of K is ``group_size_k`` adjacent KV heads with one latent of ``rank_k`` numbers, a group of V likewise.
    A slot of the cache belongs to the larger group and holds the latents of all groups within it. A layer that is
    ``shared`` reads an earlier layer's latents; its sizes are those of that layer.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    group_size_k: int
    group_size_v: int
    rank_k: int
    rank_v: int
    value_path: Literal["fused", "factored", "uncompressed"] = "fused"
    qk_norm: bool = False
    shared: bool = False
    slot: SlotFormat | None = None  # how latents are packed; None: the cache holds their numbers as they are
    sliding_window: int | None = None  # a query sees itself and the window - 1 tokens before it
    num_sinks: int = 0  # with a window: tokens at the start of a request that every query behind them sees too
    shift_sinks: bool = False  # a query meets the sinks right before its window, else where they are
    rotary_dim: int | None = None  # how many numbers of a head are rotated, the first ones; None: all
    softmax_scale: float | None = None  # None: ``head_dim ** -0.5``

    def on_one_of(self, devices: int) -> Self:
        """The sizes on one device where heads are divided among as many."""
        return replace(self, num_heads=self.num_heads // devices, num_kv_heads=self.num_kv_heads // devices)

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_width(self) -> int:
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def cached_tokens(self) -> int | None:
        """Sinks and window: most that a query sees, itself included; None where there is no window."""
        return None if self.sliding_window is None else self.num_sinks + self.sliding_window

    @property
    def group_size(self) -> int:
        """KV heads of one slot of the cache."""
        return max(self.group_size_k, self.group_size_v)

    @property
    def num_groups(self) -> int:
        """Slots per token."""
        return self.num_kv_heads // self.group_size

    @property
    def num_groups_k(self) -> int:
        return self.num_kv_heads // self.group_size_k

    @property
    def num_groups_v(self) -> int:
        return self.num_kv_heads // self.group_size_v

    @property
    def key_latents(self) -> int:
        """Groups of K in one slot."""
        return self.group_size // self.group_size_k

    @property
    def value_latents(self) -> int:
        """Groups of V in one slot."""
        return self.group_size // self.group_size_v

    @property
    def numbers_k(self) -> int:
        """Of all key latents of a slot."""
        return self.key_latents * self.rank_k

    @property
    def numbers_v(self) -> int:
        return self.value_latents * self.rank_v

    @property
    def key_width(self) -> int:
        """Elements of one key latent in the cache: bytes where latents are packed; so are the other widths."""
        return self.rank_k if self.slot is None else self.slot.key.bytes

    @property
    def value_width(self) -> int:
        return self.rank_v if self.slot is None else self.slot.value.bytes

    @property
    def value_start(self) -> int:
        """Where the value latents of a slot begin."""
        return self.key_latents * self.key_width

    @property
    def slot_width(self) -> int:
        return self.value_start + self.value_latents * self.value_width

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
