"""Tensor names, shapes and files of a compressed checkpoint. The only module that knows them.

Per layer, below ``model.layers.{i}.self_attn.`` (``groups_k`` is ``num_kv_heads / group_size_k``, ``full_k`` is
``group_size_k * head_dim``, likewise for V):

====================  ============================================  =================================
name                  shape                                         present
====================  ============================================  =================================
``q_proj.weight``     ``[num_heads * head_dim, hidden]``            always
``k_down.weight``     ``[groups_k * rank_k, hidden]``               always
``k_up``              ``[groups_k, rank_k, full_k]``                ``rank_k < full_k``
``v_down.weight``     ``[groups_v * rank_v, hidden]``               always
``v_up``              ``[groups_v, rank_v, full_v]``                factored and ``rank_v < full_v``
``o_proj.weight``     ``[hidden, num_heads * rank_v]``              fused and ``rank_v < full_v``
``o_proj.weight``     ``[hidden, num_heads * head_dim]``            otherwise
``q_proj.bias``       ``[num_heads * head_dim]``                    ``attention_bias``
``k_bias``            ``[num_kv_heads * head_dim]``                 ``attention_bias``
``o_proj.bias``       ``[hidden]``: own bias plus ``O b_v``         ``attention_bias``
``q_norm.weight``     ``[head_dim]``                                ``qk_norm``
``k_norm.weight``     ``[head_dim]``                                ``qk_norm``
====================  ============================================  =================================

A layer that reads the latents of an earlier one (``source_layers``) has ``q_proj``, ``o_proj`` and ``q_norm`` only: how
keys and values are made of those latents, ``k_norm`` and ``k_bias`` included, is the earlier layer's.

All other tensors are those of the dense model, unchanged; where it joins matrices (Phi-3's ``gate_up_proj``), their
parts.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from palu_vllm.format.config import AttentionGeometry, PaluConfig, positive
from palu_vllm.format.layers import layer_shape
from palu_vllm.format.quantized import stored_tensors
from palu_vllm.format.shape import LayerShape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LM_HEAD = "lm_head.weight"
OF_LATENTS = ("k_down.weight", "k_up", "k_bias", "k_norm.weight", "v_down.weight", "v_up")


class CheckpointError(ValueError):
    """A checkpoint on disk is not what it should be. The message is one sentence that says what to do."""


def attention_prefix(layer: int) -> str:
    return f"model.layers.{layer}.self_attn."


def layer_tensors(shape: LayerShape, hidden_size: int, attention_bias: bool) -> dict[str, tuple[int, ...]]:
    """``{name below self_attn.: shape}`` of one compressed layer."""
    q_width = shape.num_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (q_width, hidden_size),
        "k_down.weight": (shape.num_groups_k * shape.rank_k, hidden_size),
        "v_down.weight": (shape.num_groups_v * shape.rank_v, hidden_size),
        "o_proj.weight": (hidden_size, shape.output_width),
    }
    if shape.has_k_up:
        tensors["k_up"] = (shape.num_groups_k, shape.rank_k, shape.full_rank_k)
    if shape.value_path == "factored":
        tensors["v_up"] = (shape.num_groups_v, shape.rank_v, shape.full_rank_v)
    if attention_bias:
        biases = {"q_proj.bias": q_width, "k_bias": shape.num_kv_heads * shape.head_dim, "o_proj.bias": hidden_size}
        tensors |= {name: (width,) for name, width in biases.items()}
    if shape.qk_norm:
        tensors |= {name: (shape.head_dim,) for name in ("q_norm.weight", "k_norm.weight")}
    return {name: size for name, size in tensors.items() if not (shape.shared and name in OF_LATENTS)}


def attention_tensors(palu: PaluConfig, geometry: AttentionGeometry) -> dict[str, tuple[int, ...]]:
    """``{full name: shape}`` of every attention tensor of a compressed checkpoint."""
    return {
        attention_prefix(layer) + name: size
        for layer in range(geometry.num_layers)
        for name, size in layer_tensors(
            layer_shape(palu, geometry, layer), geometry.hidden_size, palu.attention_bias
        ).items()
    }


def body_tensors(config: Mapping[str, Any], geometry: AttentionGeometry) -> dict[str, tuple[int, ...]]:
    """``{full name: shape}`` of every tensor outside the attention, ``lm_head.weight`` included.

    Every family is the same network there: RMS norms and a gated MLP, with biases only where ``mlp_bias`` is set.
    Raises ValueError for a size that ``config.json`` lacks.
    """
    vocab, inner, hidden = positive(config, "vocab_size"), positive(config, "intermediate_size"), geometry.hidden_size
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    layer: dict[str, tuple[int, ...]] = dict.fromkeys(norms, (hidden,))
    for name, size in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
        layer[f"mlp.{name}.weight"] = size
        if config.get("mlp_bias"):
            layer[f"mlp.{name}.bias"] = size[:1]
    tensors = {f"model.layers.{i}.{name}": size for i in range(geometry.num_layers) for name, size in layer.items()}
    ends = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), LM_HEAD: (vocab, hidden)}
    return tensors | ends


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """``{full name: shape}`` of every tensor that a parsed ``config.json`` promises, quantized layers as stored.

    Raises ValueError with one sentence for a configuration that is not served.
    """
    palu, geometry = PaluConfig.from_hf_config(config), AttentionGeometry.from_hf_config(config)
    return stored_tensors(attention_tensors(palu, geometry) | body_tensors(config, geometry), config)


def read_json(path: Path) -> dict[str, Any]:
    """Parses a JSON object. Raises CheckpointError if it is missing or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); expected a model directory.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object.")
    return value


def shard_of_tensor(directory: Path) -> dict[str, Path]:
    """``{tensor name: file}`` of a safetensors checkpoint, sharded or not.

    Raises CheckpointError for a missing or damaged shard, a tensor that its shard lacks, and for names
    in the index that point outside the directory.
    """
    if (directory / SINGLE).exists():  # the order of transformers
        where = {tensor: directory / SINGLE for tensor in tensor_shapes(directory / SINGLE)}
    elif (directory / INDEX).exists():
        listed = read_json(directory / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(f"{directory / INDEX} has no weight_map; expected a safetensors index.")
        where = {tensor: _inside(directory, name) for tensor, name in listed.items()}
    else:
        raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}; expected safetensors weights.")
    for file in sorted(set(where.values())):
        missing = {t for t, f in where.items() if f == file} - tensor_shapes(file).keys()
        if missing:
            raise CheckpointError(f"{file} lacks tensor {min(missing)}, which the index says it holds.")
    return where


def _inside(directory: Path, name: str) -> Path:
    """The path of a shard; refuses names that leave the directory (a hub's links into its blobs are followed)."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{directory / INDEX} names the shard {name!r}; expected a plain file name.")
    if not (directory / name).is_file():
        raise CheckpointError(f"shard {name} named by {directory / INDEX} is missing; fetch the checkpoint again.")
    return directory / name


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """``{name: shape}`` from the header of one safetensors file. Raises CheckpointError if it is damaged."""
    try:
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()
            return {name: tuple(handle.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file ({error}); fetch it again.") from error


def checkpoint_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """``{name: shape}`` of every tensor of a checkpoint; raises as :func:`shard_of_tensor`."""
    where = shard_of_tensor(directory)
    shapes = {file: tensor_shapes(file) for file in set(where.values())}
    return {name: shapes[file][name] for name, file in where.items()}


def iterate_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint, one at a time, shard by shard."""
    where = shard_of_tensor(directory)
    for file in sorted(set(where.values())):
        with safe_open(file, framework="pt") as handle:
            for name in sorted(name for name, f in where.items() if f == file):
                yield name, handle.get_tensor(name)


def read_config(directory: Path) -> tuple[dict[str, Any], PaluConfig, AttentionGeometry]:
    """``config.json``, its checked ``palu_config`` and the geometry. Raises CheckpointError."""
    config = read_json(directory / "config.json")
    try:
        return config, PaluConfig.from_hf_config(config), AttentionGeometry.from_hf_config(config)
    except ValueError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error


def check_shapes(directory: Path) -> None:
    """Raises CheckpointError unless the tensors are exactly those that ``config.json`` promises.

    vLLM's loaders accept some wrong shapes and serve garbage, so this runs before every load. Where the
    embeddings are tied, ``lm_head.weight`` may be absent.
    """
    config, *_ = read_config(directory)
    try:
        expected = expected_tensors(config)
    except ValueError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error
    if (directory / SINGLE).exists() and (directory / INDEX).exists():
        raise CheckpointError(f"{directory} has both {SINGLE} and {INDEX}; delete the one that is out of date.")
    files = set(shard_of_tensor(directory).values())
    found = {name: shape for file in files for name, shape in tensor_shapes(file).items()}
    for name, shape in expected.items():
        if name not in found:
            if name == LM_HEAD and config.get("tie_word_embeddings"):
                continue
            raise CheckpointError(f"{directory} lacks tensor {name}; compress the model again.")
        if found[name] != shape:
            raise CheckpointError(
                f"{name} has shape {list(found[name])}, expected {list(shape)}; compress the model again."
            )
    if unexpected := found.keys() - expected.keys():
        raise CheckpointError(f"{directory} has the unexpected tensor {min(unexpected)}; compress the model again.")


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is a NaN or an infinity; true of integers. One pass, without a temporary of the tensor's size.

    The least and the greatest number are finite only if all are, for both are NaN where any number is.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # torch finds no extremes of float8
        tensor = tensor.to(torch.float16)
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def check_finite(directory: Path) -> None:
    """Raises CheckpointError naming the first tensor with a NaN or an infinity."""
    for name, tensor in iterate_tensors(directory):
        if not all_finite(tensor):
            raise CheckpointError(f"{name} in {directory} has values that are not finite; compress the model again.")
