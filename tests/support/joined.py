"""Phi-3's joined matrices taken apart with slices, independently of the compressor's way."""

from collections.abc import Mapping
from typing import Any

import torch


def apart(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """``tensors`` with ``q_proj``, ``k_proj``, ``v_proj``, ``gate_proj`` and ``up_proj`` in the place of the joined."""
    found = {}
    for name, tensor in tensors.items():
        if ".qkv_proj." in name:
            key = tensor.shape[0] // (config["num_attention_heads"] // config["num_key_value_heads"] + 2)
            parts = {"q_proj": tensor[: -2 * key], "k_proj": tensor[-2 * key : -key], "v_proj": tensor[-key:]}
        elif ".gate_up_proj." in name:
            parts = dict(zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True))
        else:
            found[name] = tensor
            continue
        joined = name.split(".")[-2]
        found |= {name.replace(joined, part): rows.clone() for part, rows in parts.items()}
    return found
