"""The oracle of ``hadamard`` at load: a checkpoint rotated on disk, entry by entry and without the server's code."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.truncated import LAYER


def entry(row: int, column: int, size: int) -> float:
    """Of the Kronecker product of a Hadamard matrix with the Hartley transform of the odd factor of ``size``."""
    odd = size // (size & -size)
    sign = -1 if (row // odd & column // odd).bit_count() % 2 else 1
    angle = 2 * math.pi * (row % odd * (column % odd) % odd) / odd
    return sign * (math.cos(angle) + math.sin(angle)) / math.sqrt(size)


def matrix(sizes: list[int]) -> torch.Tensor:
    """Blocks of neighbouring numbers, float64."""
    blocks = [[[entry(i, j, size) for j in range(size)] for i in range(size)] for size in sizes]
    return torch.block_diag(*(torch.tensor(block, dtype=torch.float64) for block in blocks))


def rotate(model: Path, out: Path, sizes_of: Callable[[int], list[int]], bits: list[dict]) -> Path:
    """``model`` with its latents rotated in blocks of ``sizes_of(rank)`` and stored in the tiers ``bits``."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    palu, width = config["palu_config"], config["head_dim"]
    full = {side: palu[f"group_size_{side}"] * width for side in "kv"}
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if not (found := LAYER.fullmatch(name)):
            continue
        layer, inside = int(found[1]), found[2]
        ranks = {"k": palu["rank_k"][layer], "v": palu["rank_v"][layer]}
        whole = {side: ranks[side] == full[side] for side in "kv"}
        by = {side: matrix([width] if whole[side] else sizes_of(ranks[side])) for side in "kv"}
        wide = tensor.double()
        for side in "kv":
            if inside == f"{side}_down.weight" and not (side == "k" and whole["k"]):
                wide = torch.cat([by[side] @ rows for rows in wide.split(len(by[side]))])
            if inside == f"{side}_up":
                wide = torch.stack([by[side] @ up for up in wide])
        if inside == "o_proj.weight" and (whole["v"] or palu["value_path"] == "fused"):
            wide = torch.cat([columns @ by["v"].T for columns in wide.split(len(by["v"]), dim=1)], dim=1)
        tensors[name] = wide.to(tensor.dtype).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config["palu_config"] = palu | {"hadamard": True, "tiers_k": bits, "tiers_v": bits}
    (out / "config.json").write_text(json.dumps(config))
    return out
