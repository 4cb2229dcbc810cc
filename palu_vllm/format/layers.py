"""``layer_shape`` says what a configuration says of one layer."""

from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.format.shape import LayerShape


def layer_shape(palu: PaluConfig, geometry: AttentionGeometry, layer: int) -> LayerShape:
    """The sizes of one layer. How its latents are packed depends on the dtype too: see ``PaluConfig.slot_format``."""
    uncompressed = palu.rank_v[layer] == palu.group_size_v * geometry.head_dim
    return LayerShape(
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
