"""The oracle of ``rank_ratio``: a checkpoint cut to fewer latents on disk, by indices and without the server's code."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYER = re.compile(r"model\.layers\.(\d+)\.self_attn\.(.+)")


def kept_indices(blocks: int, stored: int, kept: int) -> list[int]:
    """Of ``blocks`` runs of ``stored`` numbers, the places of the first ``kept`` of each."""
    return [block * stored + number for block in range(blocks) for number in range(kept)]


def truncate(model: Path, out: Path, rank_k: Sequence[int], rank_v: Sequence[int]) -> Path:
    """Writes ``model`` with the leading ``rank_k[layer]`` and ``rank_v[layer]`` latents of every group to ``out``."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    palu, heads, kv_heads = config["palu_config"], config["num_attention_heads"], config["num_key_value_heads"]
    groups = {side: kv_heads // palu[f"group_size_{side}"] for side in "kv"}
    full = {side: palu[f"group_size_{side}"] * config["head_dim"] for side in "kv"}
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if not (found := LAYER.fullmatch(name)):
            continue
        layer, inside = int(found[1]), found[2]
        stored = {"k": palu["rank_k"][layer], "v": palu["rank_v"][layer]}
        kept = {"k": rank_k[layer], "v": rank_v[layer]}
        for side in "kv":
            if inside == f"{side}_down.weight":
                tensor = tensor[kept_indices(groups[side], stored[side], kept[side])]
            if inside == f"{side}_up":
                tensor = tensor[:, torch.arange(kept[side])]
        if inside == "o_proj.weight" and palu["value_path"] == "fused" and stored["v"] < full["v"]:
            tensor = tensor[:, kept_indices(heads, stored["v"], kept["v"])]
        tensors[name] = tensor.contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config["palu_config"] = palu | {"rank_k": list(rank_k), "rank_v": list(rank_v)}
    (out / "config.json").write_text(json.dumps(config))
    return out
