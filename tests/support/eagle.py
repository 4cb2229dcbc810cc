"""An EAGLE head of a tiny Llama, its last layer behind the hidden state, as files for vLLM's method ``eagle``."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from palu_vllm.format.checkpoint import read_json
from tests.support.tiny_models import edit_config


def build_eagle(directory: Path, model: Path) -> Path:
    """Writes the head of ``model`` and returns ``directory``. Embedding and output projection stay the model's."""
    directory.mkdir()
    config = read_json(model / "config.json")
    (directory / "config.json").write_text((model / "config.json").read_text())
    edit_config(directory, num_hidden_layers=1)
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    tensors = load_file(model / "model.safetensors")
    layer = {name.replace(last, "layers.0."): tensor for name, tensor in tensors.items() if name.startswith(last)}
    layer.pop("layers.0.input_layernorm.weight")  # a head has none
    hidden = torch.eye(config["hidden_size"])
    save_file(layer | {"fc.weight": torch.cat([0.1 * hidden, hidden], 1)}, directory / "model.safetensors")
    return directory
