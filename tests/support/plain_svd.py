"""Palu checkpoints of tiny dense ones by plain SVD: an independent oracle for the compressor.

``decompose`` knows only the mathematics and ``checkpoint.layer_tensors``; it shares no code with the compressor.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from palu_vllm import __version__
from palu_vllm.families import CAUSAL_LM, palu_class, palu_type
from palu_vllm.format.checkpoint import SINGLE, attention_prefix, iterate_tensors, layer_tensors, read_json
from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.format.layers import layer_shape
from tests.support.joined import apart
from tests.support.tiny_models import edit_config

Tiers = list[tuple[float, int]]


def build_palu(
    dense: Path,
    directory: Path,
    rank_k: int | Sequence[int],
    rank_v: int | Sequence[int],
    group_size: int | tuple[int, int] = 2,
    value_path: str = "fused",
    source_layers: Sequence[int] | None = None,
) -> Path:
    """Writes the palu form of ``dense`` by plain SVD, ranks for all layers or for each, ``group_size`` for K and V or
    for each; returns ``directory``.
    """
    config = read_json(dense / "config.json")
    geometry = AttentionGeometry.from_hf_config(config)
    tensors = apart(dict(iterate_tensors(dense)), config)
    group_sizes = (group_size, group_size) if isinstance(group_size, int) else group_size
    palu = PaluConfig(
        base_model=str(dense),
        group_size_k=group_sizes[0],
        group_size_v=group_sizes[1],
        rank_k=_per_layer(rank_k, geometry),
        rank_v=_per_layer(rank_v, geometry),
        value_path=value_path,
        source_layers=None if source_layers is None else list(source_layers),
        attention_bias=attention_prefix(0) + "k_proj.bias" in tensors,
        qk_norm=attention_prefix(0) + "k_norm.weight" in tensors,
        objective="svd",
        search="uniform",
        calibration="none",
        seed=0,
        tool_version=__version__,
    )
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if ".self_attn." not in name}
    for layer in range(geometry.num_layers):
        kept |= {name: each.contiguous() for name, each in decompose(tensors, palu, geometry, layer).items()}
    directory.mkdir(parents=True)
    save_file(kept, directory / SINGLE, metadata={"format": "pt"})
    family = config["model_type"]
    config |= {
        "model_type": palu_type(family),
        "architectures": [palu_class(family, CAUSAL_LM)],
        "palu_config": palu.model_dump(),
    }
    (directory / "config.json").write_text(json.dumps(config))
    for file in dense.glob("*token*"):
        (directory / file.name).write_bytes(file.read_bytes())
    for name in ("generation_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((dense / name).read_bytes())
    return directory


def _per_layer(rank: int | Sequence[int], geometry: AttentionGeometry) -> list[int]:
    return [rank] * geometry.num_layers if isinstance(rank, int) else list(rank)


def decompose(
    tensors: dict[str, torch.Tensor], palu: PaluConfig, geometry: AttentionGeometry, layer: int
) -> dict[str, torch.Tensor]:
    """The attention tensors of one layer under their full names, in float32 from float64 arithmetic."""
    prefix, shape = attention_prefix(layer), layer_shape(palu, geometry, layer)
    dense = dense_attention(tensors, layer)
    if shape.shared:  # keys and values are those of the source, which is never this layer's own projection
        source = dense_attention(tensors, palu.source_layer(layer))
        dense |= {name: tensor for name, tensor in source.items() if name.startswith(("k_", "v_"))}
    k_down, k_up = split(dense["k_proj.weight"], shape.num_groups_k, shape.rank_k)
    v_down, v_up = split(dense["v_proj.weight"], shape.num_groups_v, shape.rank_v)
    result = {"k_down.weight": k_down, "v_down.weight": v_down, "k_up": k_up, "v_up": v_up}
    result["q_proj.weight"], result["o_proj.weight"] = dense["q_proj.weight"], dense["o_proj.weight"]
    result |= {name: tensor for name, tensor in dense.items() if name.endswith("_norm.weight")}
    queries = shape.num_heads // shape.num_kv_heads
    if palu.attention_bias:
        v_bias = dense["v_proj.bias"].view(-1, shape.head_dim).repeat_interleave(queries, 0).flatten()
        own = dense.get("o_proj.bias", torch.zeros(geometry.hidden_size, dtype=torch.float64))
        result |= {"q_proj.bias": dense["q_proj.bias"], "k_bias": dense["k_proj.bias"]}
        result["o_proj.bias"] = own + dense["o_proj.weight"] @ v_bias
    if shape.value_path == "fused":  # o_proj of each query head times v_up of its KV head
        per_head = v_up.view(shape.num_groups_v, shape.rank_v, shape.group_size_v, shape.head_dim).transpose(1, 2)
        per_query = per_head.flatten(0, 1).repeat_interleave(queries, 0)
        out = dense["o_proj.weight"].view(geometry.hidden_size, shape.num_heads, shape.head_dim)
        result["o_proj.weight"] = torch.einsum("ejd,jrd->ejr", out, per_query).flatten(1)
    wanted = layer_tensors(shape, geometry.hidden_size, palu.attention_bias)
    return {prefix + name: result[name].float() for name in wanted}


def dense_attention(tensors: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """The attention tensors of one layer of a dense model in float64, by their names below ``self_attn``."""
    prefix = attention_prefix(layer)
    return {name.removeprefix(prefix): t.double() for name, t in tensors.items() if name.startswith(prefix)}


def split(weight: torch.Tensor, groups: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``down [groups * rank, hidden]`` and ``up [groups, rank, full]`` of a projection; at full rank ``up`` is 1."""
    blocks = weight.view(groups, -1, weight.shape[1])
    if rank == blocks.shape[1]:
        return weight, torch.eye(rank, dtype=weight.dtype).repeat(groups, 1, 1)
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    root = values[:, :rank].sqrt()
    down = root[:, :, None] * right[:, :rank]
    return down.flatten(0, 1), (left[:, :, :rank] * root[:, None]).mT


def with_tiers(palu: Path, out: Path, tiers_k: Tiers, tiers_v: Tiers, **changes: Any) -> Path:
    """Writes ``palu`` with latents quantized in the cache, in tiers of ``(fraction, bits)``; returns ``out``.

    ``changes`` are further fields of ``palu_config``.
    """
    shutil.copytree(palu, out)
    for name, tiers in (("tiers_k", tiers_k), ("tiers_v", tiers_v)):
        changes[name] = [{"share": fraction, "bits": bits} for fraction, bits in tiers]
    return edit_config(out, palu_config=read_json(out / "config.json")["palu_config"] | changes)
