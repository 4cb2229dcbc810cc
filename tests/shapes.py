"""Layers that tests run on, by name: every kind of grouping, odd ranks, every head size that is served."""

from dataclasses import dataclass, replace

from palu_vllm.kernels.operands import AttentionShape
from palu_vllm.latent_format import LatentFormat, SlotFormat, cut_into_tiers


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer; ``compressed`` layers have ``k_up``, others cache whole keys."""

    shape: AttentionShape
    compressed: bool = True
    has_bias: bool = False
    theta: float = 10000.0  # base of the rotary frequencies

    def with_window(self, sliding_window: int) -> "Layer":
        return replace(self, shape=replace(self.shape, sliding_window=sliding_window))

    def packed(self, shares_k: list[tuple[float, int]], shares_v: list[tuple[float, int]]) -> "Layer":
        """The same layer with latents in tiers of ``(share of the rank, bits)``."""
        key = LatentFormat(cut_into_tiers(self.shape.rank_k, shares_k), "float32")
        value = LatentFormat(cut_into_tiers(self.shape.rank_v, shares_v), "float32")
        return replace(self, shape=replace(self.shape, slot=SlotFormat(key, value)))


def sizes(heads: int, kv_heads: int, head_dim: int, group_size: int, rank_k: int, rank_v: int) -> AttentionShape:
    return AttentionShape(heads, kv_heads, head_dim, group_size, rank_k, rank_v, scale=head_dim**-0.5)


LAYERS = {
    "per_head_odd_ranks": Layer(sizes(4, 4, 64, 1, 17, 23)),
    "all_heads_in_one_group": Layer(sizes(8, 4, 64, 4, 48, 40)),
    "two_groups_bias_head_dim_80": Layer(sizes(8, 4, 80, 2, 33, 50), has_bias=True),
    "three_queries_per_kv_head_dim_96": Layer(sizes(6, 2, 96, 1, 31, 63)),
    "seven_queries_per_kv_bias": Layer(sizes(14, 2, 128, 2, 64, 111), has_bias=True),
    "head_dim_256": Layer(sizes(2, 1, 256, 1, 40, 24)),
    "group_of_eight": Layer(sizes(8, 8, 64, 8, 96, 130)),
    "padding_of_ranks_reaches_the_next_slot": Layer(sizes(4, 2, 64, 2, 33, 9)),
    "uncompressed": Layer(sizes(4, 2, 64, 2, 128, 128), compressed=False),
    "uncompressed_bias_head_dim_80": Layer(sizes(4, 4, 80, 2, 160, 37), compressed=False, has_bias=True),
    "sliding_window": Layer(sizes(4, 2, 64, 2, 24, 36)).with_window(13),
}

ALL = 1.0
PACKED_LAYERS = {
    "8_bits": LAYERS["all_heads_in_one_group"].packed([(ALL, 8)], [(ALL, 8)]),
    "4_bits_odd_ranks": LAYERS["per_head_odd_ranks"].packed([(ALL, 4)], [(ALL, 4)]),
    "3_bits_bias": LAYERS["two_groups_bias_head_dim_80"].packed([(ALL, 3)], [(ALL, 3)]),
    "2_bits_uncompressed": LAYERS["uncompressed"].packed([(ALL, 2)], [(ALL, 2)]),
    "keys_16_values_4_bits": LAYERS["sliding_window"].packed([(ALL, 16)], [(ALL, 4)]),
    "tiers": LAYERS["group_of_eight"].packed([(0.25, 8), (0.75, 3)], [(0.25, 16), (0.25, 4), (0.5, 2)]),
}

SERVED_LAYERS = {
    "llama_2_7b_128_384": Layer(sizes(32, 32, 128, 4, 128, 384)),
    "llama_3_8b_256_256": Layer(sizes(32, 8, 128, 4, 256, 256), theta=5e5),
    "llama_3_8b_128_384": Layer(sizes(32, 8, 128, 4, 128, 384), theta=5e5),
    "qwen_2_7b_128_384": Layer(sizes(28, 4, 128, 4, 128, 384), has_bias=True, theta=1e6),
    "llama_3_8b_uncompressed": Layer(sizes(32, 8, 128, 4, 512, 512), compressed=False, theta=5e5),
}

SERVED_PACKED_LAYERS = {
    "llama_2_7b_128_384_4_bits": SERVED_LAYERS["llama_2_7b_128_384"].packed([(ALL, 4)], [(ALL, 4)]),
    "llama_3_8b_256_256_4_bits": SERVED_LAYERS["llama_3_8b_256_256"].packed([(ALL, 4)], [(ALL, 4)]),
    "llama_3_8b_128_384_4_bits": SERVED_LAYERS["llama_3_8b_128_384"].packed([(ALL, 4)], [(ALL, 4)]),
    "qwen_2_7b_128_384_4_bits": SERVED_LAYERS["qwen_2_7b_128_384"].packed([(ALL, 4)], [(ALL, 4)]),
    "llama_3_8b_256_256_tiers": SERVED_LAYERS["llama_3_8b_256_256"].packed(
        [(0.25, 8), (0.75, 3)], [(0.25, 16), (0.25, 4), (0.5, 2)]
    ),
}
