"""Dumps in the published layout of the reference implementation, and an oracle that computes in its way.

Written from the layout that ``offline_compress/convert/reference_dump.py`` describes, without code of the converter or
the checkpoint format: a torch module with one down-projection for all groups and one up-projection per group stands in
for ``k_proj`` and ``v_proj`` of transformers' own dense model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

KINDS = {
    "llama": ("palullama", "PaluLlamaForCausalLM"),
    "mistral": ("palumistral", "PaluMistralForCausalLM"),
    "qwen2": ("paluqwen2", "PaluQwenForCausalLM"),
}
Ranks = Mapping[str, Sequence[Sequence[int]]]  # of k_proj and v_proj: [layer][group]


class Headwise(nn.Module):
    """Latents of all groups at once, then each group's own up-projection, its bias included."""

    def __init__(self, dense: nn.Linear, ranks: Sequence[int]) -> None:
        super().__init__()
        full, hidden = dense.out_features // len(ranks), dense.in_features
        self.ranks = list(ranks)
        self.VT = nn.Linear(hidden, sum(ranks), bias=False)
        self.U = nn.ModuleList(nn.Linear(rank, full, bias=dense.bias is not None) for rank in ranks)
        downs = []
        for group, rank in enumerate(ranks):
            rows = slice(group * full, (group + 1) * full)
            left, values, right = torch.linalg.svd(dense.weight.data[rows].double(), full_matrices=False)
            root = values[:rank].sqrt()
            self.U[group].weight.data = (left[:, :rank] * root).to(dense.weight.dtype)
            downs.append((root[:, None] * right[:rank]).to(dense.weight.dtype))
            if dense.bias is not None:
                self.U[group].bias.data = dense.bias.data[rows].clone()
        self.VT.weight.data = torch.cat(downs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        latents = self.VT(hidden).split(self.ranks, dim=-1)
        return torch.cat([up(latent) for up, latent in zip(self.U, latents, strict=True)], dim=-1)


def reference_model(dense: Path, ranks: Ranks):
    """transformers' dense model whose keys and values pass through latents in the reference's way."""
    model = AutoModelForCausalLM.from_pretrained(dense)
    for index, layer in enumerate(model.model.layers):
        for name, per_layer in ranks.items():
            setattr(layer.self_attn, name, Headwise(getattr(layer.self_attn, name), per_layer[index]))
    return model.eval()


def write_dump(dense: Path, out: Path, ranks: Ranks) -> Path:
    """The dump of :func:`reference_model`; returns ``out``."""
    out.mkdir(parents=True)
    model = reference_model(dense, ranks)
    tied = model.config.tie_word_embeddings
    tensors = {
        name: t.contiguous() for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((dense / "config.json").read_text())
    config["model_type"], architecture = KINDS[config["model_type"]]
    config |= {"architectures": [architecture], "original_model_name_or_path": "/models/tiny", "head_wise_ranks": {}}
    for name, per_layer in ranks.items():
        for layer, groups in enumerate(per_layer):
            config["head_wise_ranks"][f"model.layers.{layer}.self_attn.{name}"] = list(groups)
    (out / "config.json").write_text(json.dumps(config))
    for file in dense.glob("*token*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out
