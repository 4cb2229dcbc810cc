"""The attention tensors of one compressed layer, from dense projections to the checkpoint's names."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from offline_compress.decomposition import decompose
from offline_compress.fuse_output import constant_output, fuse_output
from offline_compress.model_access import KEY, OUTPUT, QUERY, VALUE, projection
from offline_compress.source import SourceModel
from palu_vllm.config import LayerShape

Put = Callable[[str, torch.Tensor], None]


class LayerErrors(NamedTuple):
    """Relative Frobenius errors of the key and value projections of one layer; 0 where it is stored uncompressed."""

    key: float
    value: float


def write_attention(
    put: Put,
    source: SourceModel,
    layer: int,
    shape: LayerShape,
    bias: bool,
    whitening: torch.Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerErrors:
    """Passes every tensor of the layer to ``put(name below self_attn., tensor)``.

    ``whitening`` is the factor ``S`` of the layer's inputs or None for plain SVD. A projection at full rank is passed
    on as it is stored.
    """

    def read(name: str) -> torch.Tensor:
        return source.tensor(projection(layer, name)).to(device)

    put("q_proj.weight", read(QUERY))
    key_error = _write_key(put, read(KEY), shape, whitening)
    value_error = _write_value(put, read(VALUE), read(OUTPUT), shape, whitening, dtype)
    if bias:
        _write_biases(put, source, layer, shape, read(OUTPUT))
    return LayerErrors(key_error, value_error)


def _write_key(put: Put, weight: torch.Tensor, shape: LayerShape, whitening: torch.Tensor | None) -> float:
    if not shape.has_k_up:
        put("k_down.weight", weight)
        return 0.0
    factors = decompose(weight, shape.num_groups, shape.rank_k, whitening)
    put("k_down.weight", factors.down)
    put("k_up", factors.up)
    return factors.relative_error


def _write_value(
    put: Put,
    weight: torch.Tensor,
    output: torch.Tensor,
    shape: LayerShape,
    whitening: torch.Tensor | None,
    dtype: torch.dtype,
) -> float:
    if shape.value_path == "uncompressed":
        put("v_down.weight", weight)
        put("o_proj.weight", output)
        return 0.0
    factors = decompose(weight, shape.num_groups, shape.rank_v, whitening)
    put("v_down.weight", factors.down)
    if shape.value_path == "factored":
        put("v_up", factors.up)
        put("o_proj.weight", output)
    else:
        put("o_proj.weight", fuse_output(output, factors.up, shape.num_kv_heads, dtype))
    return factors.relative_error


def _write_biases(put: Put, source: SourceModel, layer: int, shape: LayerShape, output: torch.Tensor) -> None:
    """Query and key biases as they are; the value bias leaves attention as a constant of the output projection."""
    put("q_proj.bias", source.tensor(projection(layer, QUERY, "bias")))
    put("k_bias", source.tensor(projection(layer, KEY, "bias")))
    value_bias = source.tensor(projection(layer, VALUE, "bias")).to(output.device)
    constant = constant_output(output, value_bias, shape.num_kv_heads)
    own = projection(layer, OUTPUT, "bias")
    put("o_proj.bias", constant + source.tensor(own).to(output.device) if own in source.files else constant)
