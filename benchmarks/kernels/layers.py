"""Layers by name: the attention of models that are served, and the shapes that every kernel is compiled for."""

from dataclasses import dataclass, replace

import torch

from palu_vllm.format.latent_format import LatentFormat, SlotFormat, cut_into_scale_groups, cut_into_tiers
from palu_vllm.format.shape import LayerShape

ALL = 1.0


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer; ``compressed`` layers have ``k_up``, others cache whole keys."""

    shape: LayerShape
    compressed: bool = True
    has_bias: bool = False
    theta: float = 10000.0  # base of the rotary frequencies
    has_key_norm: bool = False

    def with_latents(self, key_latents: int = 1, value_latents: int = 1) -> "Layer":
        """The same layer with that many latents of K and of V in a slot; ranks are those of one of them."""
        size = self.shape.group_size
        shape = replace(self.shape, group_size_k=size // key_latents, group_size_v=size // value_latents)
        return replace(self, shape=shape)

    def with_window(self, sliding_window: int) -> "Layer":
        return replace(self, shape=replace(self.shape, sliding_window=sliding_window))

    def with_sinks(self, num_sinks: int, sliding_window: int, shift_sinks: bool) -> "Layer":
        shape = replace(self.shape, num_sinks=num_sinks, sliding_window=sliding_window, shift_sinks=shift_sinks)
        return replace(self, shape=shape)

    def with_rotary_dim(self, rotary_dim: int) -> "Layer":
        return replace(self, shape=replace(self.shape, rotary_dim=rotary_dim))

    def packed(
        self, fractions_k: list[tuple[float, int]], fractions_v: list[tuple[float, int]], dtype: str = "float32"
    ) -> "Layer":
        """The same layer with latents in tiers of ``(fraction of the rank, bits)``, those of 16 bits in ``dtype``."""
        key = LatentFormat(cut_into_tiers(self.shape.rank_k, fractions_k), dtype)
        value = LatentFormat(cut_into_tiers(self.shape.rank_v, fractions_v), dtype)
        return replace(self, shape=replace(self.shape, slot=SlotFormat(key, value)))

    def in_scale_groups(self, size: int, symmetric: bool = False, clip: float = 1.0) -> "Layer":
        """The same layer with its tiers cut into scale groups. Raises ValueError where it is not packed."""
        slot = self.shape.slot
        if slot is None:
            raise ValueError("got a layer that is not packed, expected one with tiers to cut")
        key, value = (
            replace(form, tiers=cut_into_scale_groups(form.tiers, size), symmetric=symmetric, clip=clip)
            for form in (slot.key, slot.value)
        )
        return replace(self, shape=replace(self.shape, slot=SlotFormat(key, value)))

    def rotations(self, positions: int) -> torch.Tensor:
        """Cosines, then sines of positions from 0 on, float32 ``[positions, rotary_dim]``."""
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), self.frequencies())
        return torch.cat((angles.cos(), angles.sin()), dim=-1).float()

    def frequencies(self) -> torch.Tensor:
        """Radians per position, float64 ``[rotary_dim / 2]``, highest first."""
        width = self.shape.rotary_width
        return self.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def in_bits(self, bits: int) -> "Layer":
        """The same layer with all latents of ``bits``; 16 leaves them as they are."""
        return self if bits == 16 else self.packed([(ALL, bits)], [(ALL, bits)], "bfloat16")


def sizes(heads: int, kv_heads: int, head_dim: int, group_size: int, rank_k: int, rank_v: int) -> LayerShape:
    return LayerShape(heads, kv_heads, head_dim, group_size, group_size, rank_k, rank_v)


@dataclass(frozen=True)
class Model:
    """The attention of a model. Rotary frequencies are those of ``theta`` alone, without a scaling of long contexts."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    theta: float
    has_bias: bool = False
    has_key_norm: bool = False

    def layer(self, rank_k: int, rank_v: int, group_size: int = 4) -> Layer:
        """Raises ValueError where the groups do not divide the KV heads or a rank is more than full."""
        if group_size < 1 or self.num_kv_heads % group_size:
            raise ValueError(f"got group size {group_size}, expected a divisor of {self.num_kv_heads} KV heads")
        full = group_size * self.head_dim
        if not (0 < rank_k <= full and 0 < rank_v <= full):
            raise ValueError(f"got ranks {rank_k}/{rank_v}, expected 1 to {full}, the full rank of a group")
        shape = sizes(self.num_heads, self.num_kv_heads, self.head_dim, group_size, rank_k, rank_v)
        return Layer(shape, has_bias=self.has_bias, theta=self.theta, has_key_norm=self.has_key_norm)


MODELS = {
    "llama-2-7b": Model(32, 32, 128, hidden_size=4096, theta=1e4),
    "llama-3.1-8b": Model(32, 8, 128, hidden_size=4096, theta=5e5),
    "mistral-7b": Model(32, 8, 128, hidden_size=4096, theta=1e6),
    "qwen-2-7b": Model(28, 4, 128, hidden_size=3584, theta=1e6, has_bias=True),
    "qwen-3-8b": Model(32, 8, 128, hidden_size=4096, theta=1e6, has_key_norm=True),
}

RECOMMENDED_LAYERS = {
    "llama_2_7b_128_384": MODELS["llama-2-7b"].layer(128, 384),
    "llama_3_8b_128_384": MODELS["llama-3.1-8b"].layer(128, 384),
    "llama_3_8b_256_256": MODELS["llama-3.1-8b"].layer(256, 256),
    "qwen_2_7b_128_384": MODELS["qwen-2-7b"].layer(128, 384),
    "qwen_3_8b_256_256": MODELS["qwen-3-8b"].layer(256, 256),
}
SERVED_LAYERS = RECOMMENDED_LAYERS | {
    "llama_3_8b_uncompressed": Layer(sizes(32, 8, 128, 4, 512, 512), compressed=False, theta=5e5),
}
SERVED_PACKED_LAYERS = {f"{name}_4_bits": layer.in_bits(4) for name, layer in RECOMMENDED_LAYERS.items()} | {
    "qwen_2_7b_128_384_8_bits": RECOMMENDED_LAYERS["qwen_2_7b_128_384"].in_bits(8),
    "qwen_2_7b_128_384_3_bits": RECOMMENDED_LAYERS["qwen_2_7b_128_384"].in_bits(3),
    "llama_3_8b_256_256_2_bits": RECOMMENDED_LAYERS["llama_3_8b_256_256"].in_bits(2),
    "llama_3_8b_128_384_three_tiers": RECOMMENDED_LAYERS["llama_3_8b_128_384"].packed(
        [(0.125, 8), (0.375, 4), (0.5, 3)], [(0.25, 8), (0.75, 4)], "bfloat16"
    ),
    "llama_3_8b_256_256_tiers": SERVED_LAYERS["llama_3_8b_256_256"].packed(
        [(0.25, 8), (0.75, 3)], [(0.25, 16), (0.25, 4), (0.5, 2)], "bfloat16"
    ),
}
SERVED_PACKED_LAYERS |= {
    f"{name}_groups{'_symmetric' * symmetric}": SERVED_PACKED_LAYERS[name].in_scale_groups(32, symmetric)
    for name in list(SERVED_PACKED_LAYERS)
    if name.endswith(("_4_bits", "tiers"))
    for symmetric in (False, True)
}
WITHOUT_FREQUENCIES = {  # only to be compiled: no rotary pair can be absorbed
    "llama_3_8b_128_384_whole_keys": replace(RECOMMENDED_LAYERS["llama_3_8b_128_384"], theta=float("nan")),
}
RECOMMENDED = frozenset(RECOMMENDED_LAYERS) | {f"{name}_4_bits" for name in RECOMMENDED_LAYERS}
