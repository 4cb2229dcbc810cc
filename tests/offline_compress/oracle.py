"""Attention of one layer, dense and from latents, in float64 and without RoPE: both must agree where nothing is lost.

RoPE acts on keys after they are rebuilt, alike in both, so leaving it out loses nothing.
"""

from pathlib import Path

import torch

from palu_vllm.format.checkpoint import attention_prefix, iterate_tensors, read_config, read_json
from palu_vllm.format.layers import layer_shape
from palu_vllm.format.shape import LayerShape
from tests.support.joined import apart


def layer_of(directory: Path, layer: int) -> dict[str, torch.Tensor]:
    prefix = attention_prefix(layer)
    tensors = apart(dict(iterate_tensors(directory)), read_json(directory / "config.json"))
    return {name.removeprefix(prefix): tensor.double() for name, tensor in tensors.items() if name.startswith(prefix)}


def linear(tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", torch.zeros(()))


def weigh(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Causal attention weights ``[heads, tokens, tokens]`` of ``queries [heads, tokens, d]``."""
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


def heads_of(x: torch.Tensor, width: int, heads: int) -> torch.Tensor:
    """``[tokens, n * width]`` to ``[heads, tokens, width]``, each part repeated for its query heads."""
    split = x.view(len(x), -1, width).transpose(0, 1)
    return split.repeat_interleave(heads // len(split), 0)


def normalised(directory: Path, tensors: dict[str, torch.Tensor], norm: str, heads: torch.Tensor) -> torch.Tensor:
    """``heads [..., head_dim]`` times the weights of ``norm`` over their root mean square; as they are without one."""
    if f"{norm}.weight" not in tensors:
        return heads
    mean_square = heads.square().mean(-1, keepdim=True)
    return (
        tensors[f"{norm}.weight"] * heads / (mean_square + read_json(directory / "config.json")["rms_norm_eps"]).sqrt()
    )


def dense_attention(directory: Path, layer: int, shape: LayerShape, x: torch.Tensor) -> torch.Tensor:
    """Output ``[tokens, hidden]`` of the dense layer for ``x [tokens, hidden]`` float64."""
    tensors, heads, width = layer_of(directory, layer), shape.num_heads, shape.head_dim
    queries, keys, values = (
        heads_of(linear(tensors, name, x), width, heads) for name in ("q_proj", "k_proj", "v_proj")
    )
    queries, keys = normalised(directory, tensors, "q_norm", queries), normalised(directory, tensors, "k_norm", keys)
    return linear(tensors, "o_proj", (weigh(queries, keys) @ values).transpose(0, 1).flatten(1))


def latent_attention(directory: Path, layer: int, x: torch.Tensor) -> torch.Tensor:
    """The same from the tensors of a compressed checkpoint, as ``palu_vllm.format.checkpoint`` describes them."""
    _, palu, geometry = read_config(directory)
    shape, tensors = layer_shape(palu, geometry, layer), layer_of(directory, layer)
    keys = linear(tensors, "k_down", x)
    if shape.has_k_up:
        keys = torch.cat([c @ up for c, up in zip(keys.chunk(shape.num_groups_k, 1), tensors["k_up"], strict=True)], 1)
    keys = keys + tensors.get("k_bias", torch.zeros(()))
    values = linear(tensors, "v_down", x)
    width = shape.rank_v if shape.value_path == "fused" else shape.head_dim
    if shape.value_path == "factored":
        values = torch.cat(
            [c @ up for c, up in zip(values.chunk(shape.num_groups_v, 1), tensors["v_up"], strict=True)], 1
        )
    queries = heads_of(linear(tensors, "q_proj", x), shape.head_dim, shape.num_heads)
    keys = heads_of(keys, shape.head_dim, shape.num_heads)
    queries, keys = normalised(directory, tensors, "q_norm", queries), normalised(directory, tensors, "k_norm", keys)
    weights = weigh(queries, keys)
    attended = weights @ heads_of(values, width, shape.num_heads)
    return linear(tensors, "o_proj", attended.transpose(0, 1).flatten(1))


def shape_of(directory: Path, layer: int) -> LayerShape:
    _, palu, geometry = read_config(directory)
    return layer_shape(palu, geometry, layer)
