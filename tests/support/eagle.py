"""EAGLE heads of a tiny Llama, its last layer behind hidden states, as files for vLLM's ``eagle`` and ``eagle3``."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from palu_vllm.format.checkpoint import read_json
from tests.support.tiny_models import edit_config

AUX = [1, 2]  # layers of the model whose hidden states EAGLE 3 reads


def build_eagle(directory: Path, model: Path) -> Path:
    """Writes the head of ``model`` and returns ``directory``. Embedding and output projection stay the model's."""
    layer, hidden = _last_layer(model, directory, "layers.0."), read_json(model / "config.json")["hidden_size"]
    layer.pop("layers.0.input_layernorm.weight")  # a head has none
    one = torch.eye(hidden)
    save_file(layer | {"fc.weight": torch.cat([0.1 * one, one], 1)}, directory / "model.safetensors")
    return directory


def build_eagle3(directory: Path, model: Path) -> Path:
    """Likewise; its attention reads the embedding beside the hidden state, and its output projection is a copy."""
    layer, hidden = _last_layer(model, directory, "midlayer."), read_json(model / "config.json")["hidden_size"]
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = layer[f"midlayer.self_attn.{name}.weight"]
        layer[f"midlayer.self_attn.{name}.weight"] = torch.cat([0.1 * weight, weight], 1)
    whole = load_file(model / "model.safetensors")
    layer |= {
        "midlayer.hidden_norm.weight": torch.ones(hidden), "norm.weight": whole["model.norm.weight"],
        "lm_head.weight": whole["lm_head.weight"],
        "fc.weight": torch.cat([0.1 * torch.eye(hidden), torch.eye(hidden)], 1),
    }  # fmt: skip
    edit_config(directory, eagle_config={"eagle_aux_hidden_state_layer_ids": AUX})
    save_file(layer, directory / "model.safetensors")
    return directory


def _last_layer(model: Path, directory: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Its tensors under the names of a head, whose configuration is written."""
    directory.mkdir()
    config = read_json(model / "config.json")
    (directory / "config.json").write_text((model / "config.json").read_text())
    edit_config(directory, num_hidden_layers=1)
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    tensors = load_file(model / "model.safetensors")
    return {name.replace(last, prefix): tensor for name, tensor in tensors.items() if name.startswith(last)}
