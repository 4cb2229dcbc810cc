"""Latents that are mixed while a server loads them: ``{"palu": {"latent_bits": 4, "hadamard": true}}``.

A checkpoint for many ratios keeps its latents in the order of their energy, which mixing ends; so it is written
unmixed (``palu-compress --no-hadamard``), and the latents that are kept are mixed here, behind ``leading.py``. The
tensors are then those that ``palu-compress --hadamard`` would have written of these latents, but for one rounding more
to the dtype of the checkpoint.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch

from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.format.layers import layer_shape
from palu_vllm.format.mixing import mixing_of_tiers, spreading_matrix
from palu_vllm.loading.leading import in_attention


@dataclass(frozen=True)
class LayerMixing:
    """What the latents of one layer are multiplied by, float64.

    Keys stored whole are left alone, because rotary pairs must stay; values stored whole are mixed head by head.
    """

    key: torch.Tensor | None  # [rank_k, rank_k]
    value: torch.Tensor  # [rank_v, rank_v], or [head_dim, head_dim]
    output: bool  # whether the output projection follows the value latents

    @classmethod
    def of(cls, palu: PaluConfig, geometry: AttentionGeometry, layer: int) -> Self:
        shape = layer_shape(palu, geometry, layer)
        whole = shape.value_path == "uncompressed"
        key = mixing_of_tiers(palu.key_tiers(layer)) if shape.has_k_up else None
        value = spreading_matrix(shape.head_dim) if whole else mixing_of_tiers(palu.value_tiers(layer))
        return cls(key, value, shape.value_path != "factored")

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor ``name`` (below ``self_attn.``) of the layer, its latents mixed."""
        if name in ("k_down.weight", "k_up") and self.key is not None:
            return _rows(tensor, self.key)
        if name in ("v_down.weight", "v_up"):
            return _rows(tensor, self.value)
        if name == "o_proj.weight" and self.output:
            return _rows(tensor.T, self.value).T.contiguous()
        return tensor


def _rows(tensor: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """``tensor [..., columns]`` whose rows, taken together, are runs of latents; computed in float64."""
    runs = tensor.double().flatten(0, -2).unflatten(0, (-1, len(mixing)))
    return (mixing.to(tensor.device) @ runs).reshape(tensor.shape).to(tensor.dtype)


def mixed_latents(
    weights: Iterable[tuple[str, torch.Tensor]], files: PaluConfig, served: PaluConfig, geometry: AttentionGeometry
) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors of the served ranks, mixed where ``served`` says so and the files are not."""
    if served.hadamard == files.hadamard:
        yield from weights
        return
    layers = {attention_prefix(i): LayerMixing.of(served, geometry, i) for i in range(geometry.num_layers)}
    yield from in_attention(weights, lambda name, tensor, prefix: layers[prefix](name, tensor))
