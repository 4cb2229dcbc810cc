"""What drafts for tiny models behind their hidden states, as files for vLLM: EAGLE, EAGLE 3, Medusa, MTP of Ernie."""

import json
import shutil
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


def build_medusa(directory: Path, model: Path, heads: int = 3) -> Path:
    """Heads that each see the hidden state a little differently, with the model's output projection."""
    config, whole = read_json(model / "config.json"), load_file(model / "model.safetensors")
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    directory.mkdir()
    about = {"model_type": "medusa", "architectures": ["MedusaModel"], "hidden_size": hidden, "num_hidden_layers": 1,
             "num_heads": heads, "vocab_size": vocabulary}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(about))
    tensors = {f"blocks.{head}.layers.0.weight": 0.1 * head * torch.eye(hidden) for head in range(heads)}
    tensors |= {f"lm_heads.{head}.weight": whole["lm_head.weight"].clone() for head in range(heads)}
    save_file(tensors, directory / "model.safetensors")
    return directory


def with_prediction_layer(directory: Path, model: Path) -> Path:
    """An Ernie and a layer that predicts one token further: a copy of its first, which has no experts."""
    shutil.copytree(model, directory)
    whole, hidden = load_file(model / "model.safetensors"), read_json(model / "config.json")["hidden_size"]
    first = {name: tensor.clone() for name, tensor in whole.items() if name.startswith("model.layers.0.")}
    block = {name.replace("model.layers.0.", "model.mtp_block.0."): tensor for name, tensor in first.items()}
    norms = {f"model.mtp_{name}_norm.0.weight": torch.ones(hidden) for name in ("emb", "hidden")}
    joined = torch.cat([0.1 * torch.eye(hidden), torch.eye(hidden)], 1)
    save_file(whole | block | norms | {"model.mtp_linear_proj.0.weight": joined}, directory / "model.safetensors")
    edit_config(directory, num_nextn_predict_layers=1)
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
