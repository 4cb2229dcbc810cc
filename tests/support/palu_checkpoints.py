"""Tiny dense models and their plain-SVD compression, written without the compressor: tests of loading stand alone."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from palu_vllm.families import CAUSAL_LM, palu_class, palu_type
from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.config import AttentionGeometry
from tests.support.joined import apart

Tiers = list[tuple[float, int]]
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,  # spread-out logits, so that greedy tokens do not hang on rounding
}
FULL_RANK = 32  # of a group of two heads


def write_dense(family: str, out: Path, **changes) -> Path:
    """A random float32 model of ``family`` in ``out``; biases and norms of keys and queries are random too."""
    defaults = {"sliding_window": None} if family == "mistral" else {}
    config = AutoConfig.for_model(family, **(SIZES | defaults | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.normal_(1.0, 0.3)
    model.save_pretrained(out)
    return out


def _factors(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight [out, in]`` of one group to ``down [rank, in]`` and ``up [rank, out]``."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return (s[:rank, None] * v[:rank]).float(), u[:, :rank].T.float().contiguous()


def _decompose(weight: torch.Tensor, rank: int, full: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All groups: ``down [num_groups * rank, in]`` and ``up [num_groups, rank, full]``, None at full rank."""
    if rank == full:
        return weight, None
    pairs = [_factors(part, rank) for part in weight.split(full)]
    return torch.cat([down for down, _ in pairs]), torch.stack([up for _, up in pairs])


def _fused_output(o_proj: torch.Tensor, v_up: torch.Tensor, geometry: AttentionGeometry) -> torch.Tensor:
    """``O'_j = O_j v_up_{g,h}^T`` for every query head: ``[hidden, num_heads * rank_v]``."""
    columns = []
    per_group = geometry.num_heads // v_up.shape[0]
    per_kv_head = geometry.num_heads // geometry.num_kv_heads
    for head, part in enumerate(o_proj.split(geometry.head_dim, dim=1)):
        kv_head = head // per_kv_head
        start = (kv_head % (per_group // per_kv_head)) * geometry.head_dim
        columns.append(part @ v_up[head // per_group, :, start : start + geometry.head_dim].T)
    return torch.cat(columns, dim=1)


def _layer(
    dense: dict[str, torch.Tensor],
    geometry: AttentionGeometry,
    ranks: tuple[int, int],
    group_sizes: tuple[int, int],
    fused: bool,
) -> dict[str, torch.Tensor]:
    kept = ("q_proj.weight", "o_proj.weight", "q_norm.weight", "k_norm.weight")
    out = {name: dense[name] for name in kept if name in dense}
    full_k, full_v = (size * geometry.head_dim for size in group_sizes)
    out["k_down.weight"], k_up = _decompose(dense["k_proj.weight"], ranks[0], full_k)
    out["v_down.weight"], v_up = _decompose(dense["v_proj.weight"], ranks[1], full_v)
    if k_up is not None:
        out["k_up"] = k_up
    if v_up is not None and fused:
        out["o_proj.weight"] = _fused_output(dense["o_proj.weight"], v_up, geometry)
    elif v_up is not None:
        out["v_up"] = v_up
    if "k_proj.bias" in dense:
        b_v = dense["v_proj.bias"].view(geometry.num_kv_heads, -1)
        b_v = b_v.repeat_interleave(geometry.num_heads // geometry.num_kv_heads, dim=0).flatten()
        own = dense.get("o_proj.bias", torch.zeros(geometry.hidden_size))
        out |= {"q_proj.bias": dense["q_proj.bias"], "k_bias": dense["k_proj.bias"]}
        out["o_proj.bias"] = own + dense["o_proj.weight"] @ b_v
    return out


def write_palu(
    dense: Path,
    out: Path,
    rank_k: int | list[int] = FULL_RANK,
    rank_v: int | list[int] = FULL_RANK,
    group_size: int | tuple[int, int] = 2,
    value_path: str = "fused",
) -> Path:
    """Compresses the dense checkpoint by plain SVD; ranks are per group, one for all layers or one per layer;
    ``group_size`` is that of K and V, or each.
    """
    config = json.loads((dense / "config.json").read_text())
    geometry = AttentionGeometry.from_hf_config(config)
    ranks_k, ranks_v = (rank if isinstance(rank, list) else [rank] * geometry.num_layers for rank in (rank_k, rank_v))
    group_sizes = (group_size, group_size) if isinstance(group_size, int) else group_size
    tensors = apart(load_file(dense / "model.safetensors"), config)
    for layer, (k, v) in enumerate(zip(ranks_k, ranks_v, strict=True)):
        prefix = attention_prefix(layer)
        old = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        new = _layer(old, geometry, (k, v), group_sizes, value_path == "fused")
        tensors |= {prefix + name: tensor.contiguous() for name, tensor in new.items()}
    config["architectures"] = [palu_class(config["model_type"], CAUSAL_LM)]
    config["model_type"] = palu_type(config["model_type"])
    config["palu_config"] = {
        "format_version": 1,
        "base_model": "tests/tiny",
        "group_size_k": group_sizes[0],
        "group_size_v": group_sizes[1],
        "rank_k": ranks_k,
        "rank_v": ranks_v,
        "value_path": value_path,
        "attention_bias": any(name.endswith("k_bias") for name in tensors),
        "qk_norm": any(name.endswith("k_norm.weight") for name in tensors),
        "objective": "svd",
        "search": "uniform",
        "calibration": "none",
        "seed": 0,
        "tool_version": "tests",
    }
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def kv_bytes(cache) -> int:
    """Bytes of the keys and values of a transformers cache."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def with_tiers(palu: Path, out: Path, tiers_k: Tiers, tiers_v: Tiers, **changes) -> Path:
    """The same checkpoint with latents quantized in the cache, in tiers of ``(share, bits)``; ``changes`` are further
    fields of ``palu_config``.
    """
    shutil.copytree(palu, out)
    config = json.loads((out / "config.json").read_text())
    for name, tiers in (("tiers_k", tiers_k), ("tiers_v", tiers_v)):
        config["palu_config"][name] = [{"share": share, "bits": bits} for share, bits in tiers]
    config["palu_config"] |= changes
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out
