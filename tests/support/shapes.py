"""Layers that tests run on, by name: every kind of grouping, odd ranks, every head size that is served."""

from benchmarks.kernels.layers import ALL, Layer, sizes

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
    "key_norm": Layer(sizes(8, 4, 64, 2, 40, 36), has_key_norm=True),
    "partial_rotary_bias_head_dim_80": Layer(sizes(4, 2, 80, 2, 31, 24), has_bias=True).with_rotary_dim(60),
    "partial_rotary_key_norm_bias_uncompressed": Layer(
        sizes(4, 2, 64, 2, 128, 37), compressed=False, has_bias=True, has_key_norm=True
    ).with_rotary_dim(32),
    "sixteen_queries_per_kv": Layer(sizes(32, 2, 64, 1, 16, 32)),
    "group_of_three_bias_window": Layer(sizes(12, 3, 64, 3, 32, 48), has_bias=True).with_window(29),
    "group_of_five": Layer(sizes(25, 5, 64, 5, 32, 16)),
    "group_of_six_eight_queries_per_kv": Layer(sizes(48, 6, 64, 6, 16, 48)),
    "group_of_seven": Layer(sizes(42, 7, 64, 7, 32, 16)),
    "two_keys_per_slot": Layer(sizes(8, 4, 64, 4, 24, 60)).with_latents(key_latents=2),
    "two_values_per_slot_bias": Layer(sizes(4, 4, 64, 2, 40, 17), has_bias=True).with_latents(value_latents=2),
    "two_whole_keys_per_slot_key_norm": Layer(
        sizes(4, 4, 64, 4, 128, 33), compressed=False, has_key_norm=True
    ).with_latents(key_latents=2),
}

LARGE_LAYERS = {  # at tiny contexts and in the tiles of a launch only: the interpreter is slow
    "rank_v_1024_in_one_group": Layer(sizes(8, 8, 128, 8, 1008, 1024)),
    "rank_k_1024_in_one_group_head_dim_256": Layer(sizes(4, 4, 256, 4, 1024, 624)),
    "128_rows_of_one_query": Layer(sizes(128, 8, 64, 8, 32, 48)),
}

PACKED_LAYERS = {
    "8_bits": LAYERS["all_heads_in_one_group"].packed([(ALL, 8)], [(ALL, 8)]),
    "4_bits_odd_ranks": LAYERS["per_head_odd_ranks"].packed([(ALL, 4)], [(ALL, 4)]),
    "3_bits_bias": LAYERS["two_groups_bias_head_dim_80"].packed([(ALL, 3)], [(ALL, 3)]),
    "2_bits_uncompressed": LAYERS["uncompressed"].packed([(ALL, 2)], [(ALL, 2)]),
    "keys_16_values_4_bits": LAYERS["sliding_window"].packed([(ALL, 16)], [(ALL, 4)]),
    "tiers": LAYERS["group_of_eight"].packed([(0.25, 8), (0.75, 3)], [(0.25, 16), (0.25, 4), (0.5, 2)]),
    "symmetric_3_bits": LAYERS["per_head_odd_ranks"].packed([(ALL, 3)], [(ALL, 3)]).in_scale_groups(0, symmetric=True),
    "groups_4_bits": LAYERS["seven_queries_per_kv_bias"].packed([(ALL, 4)], [(ALL, 4)]).in_scale_groups(32, clip=0.8),
    "groups_of_tiers": LAYERS["two_groups_bias_head_dim_80"]
    .packed([(0.5, 8), (0.5, 3)], [(0.25, 16), (0.75, 3)])
    .in_scale_groups(16),
    "two_keys_per_slot_tiers": LAYERS["two_keys_per_slot"].packed([(0.5, 8), (0.5, 3)], [(0.5, 16), (0.5, 2)]),
    "two_values_per_slot_groups": LAYERS["two_values_per_slot_bias"]
    .packed([(ALL, 3)], [(ALL, 4)])
    .in_scale_groups(16, clip=0.9),
    "key_norm_4_bits": LAYERS["key_norm"].packed([(ALL, 4)], [(ALL, 4)]),
    "groups_symmetric_uncompressed": LAYERS["uncompressed_bias_head_dim_80"]
    .packed([(ALL, 2)], [(ALL, 4)])
    .in_scale_groups(48, symmetric=True, clip=0.9),
}

# one of each kind: compressed or not, biases, norms, partial rotations, windows, latents of fewer heads, bits
KINDS = (
    "per_head_odd_ranks",
    "two_groups_bias_head_dim_80",
    "uncompressed",
    "sliding_window",
    "partial_rotary_key_norm_bias_uncompressed",
    "two_keys_per_slot",
    "two_values_per_slot_bias",
    "4_bits_odd_ranks",
    "keys_16_values_4_bits",
    "groups_of_tiers",
)
