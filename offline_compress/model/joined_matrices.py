"""Families that store matrices joined by rows: the dense model is read as if they were apart.

Phi-3 is Mistral's network (RMSNorm, rotary embedding, sliding window, gated SiLU, no biases) with ``qkv_proj`` for
q, k and v and ``gate_up_proj`` for the two halves of the MLP. Rows of one matrix lie one after the other in its file,
so a part is a place in that file and nothing is copied. The compressed checkpoint has the parts.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.mistral.configuration_mistral import MistralConfig

from offline_compress.model.tensor_file import StoredTensor
from offline_compress.run.errors import CompressionError
from palu_vllm.format.config import AttentionGeometry, positive, rope_type

Joined = Mapping[str, Mapping[str, int]]
FAMILIES = ("phi3",)


def joined_rows(config: Mapping[str, Any], geometry: AttentionGeometry) -> Joined:
    """``{joined matrix: {part: its rows}}``, in their order; empty for families that join nothing.

    Raises ValueError for a size that ``config.json`` lacks.
    """
    if config["model_type"] not in FAMILIES:
        return {}
    query, key = geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim
    inner = positive(config, "intermediate_size")
    return {
        "qkv_proj": {"q_proj": query, "k_proj": key, "v_proj": key},
        "gate_up_proj": {"gate_proj": inner, "up_proj": inner},
    }


def without_joined(tensors: Mapping[str, StoredTensor], joined: Joined) -> dict[str, StoredTensor]:
    """``tensors`` with the parts of every joined matrix in its place; raises CompressionError if it has other rows."""
    apart: dict[str, StoredTensor] = {}
    for name, stored in tensors.items():
        module, matrix = _module(name)
        apart |= _apart(name, stored, module, joined[matrix]) if matrix in joined else {name: stored}
    return apart


def _module(name: str) -> tuple[str, str]:
    """``("model.layers.0.self_attn.", "qkv_proj")`` of a weight's name; nothing behind the module of others."""
    path = name.removesuffix(".weight")
    module, _, last = path.rpartition(".")
    return f"{module}.", last if path != name else ""


def _apart(name: str, stored: StoredTensor, module: str, rows: Mapping[str, int]) -> dict[str, StoredTensor]:
    if stored.shape[:1] != (sum(rows.values()),):
        raise CompressionError(
            f"{name} has shape {list(stored.shape)}, expected {sum(rows.values())} rows from config.json; "
            "fetch weights and config.json that belong together."
        )
    found, start = {}, 0
    for part, count in rows.items():
        found[f"{module}{part}.weight"] = stored.rows(start, count)
        start += count
    return found


def network(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the same network with its matrices apart; ``config`` itself where none are joined.

    Raises ValueError for a rotary embedding that only shows once transformers has read the configuration.
    """
    if config.model_type not in FAMILIES:
        return config
    read = config.to_dict()
    rope_type(read)
    return MistralConfig(**{name: value for name, value in read.items() if name not in ("model_type", "architectures")})
