"""A codec on disk: ``palu_codec.json`` says what there is, ``palu_codec.safetensors`` holds matrices and centres.

Tensors of layer N are ``layers.N.`` and a name. Float32: ``key.decoder [groups, group_size * head_dim, rank]``,
``value.decoder`` alike, ``key.sink``, ``centre_cos``, ``centre_sin [kv_heads, head_dim]``, ``value.sink``,
``value_mean [kv_heads, value_dim]``. Int64: ``frequency_of [head_dim]``. Float64: ``frequencies [F]``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from palu_vllm.format.checkpoint import CheckpointError, read_json
from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.latent_format import CodedFormat, Tier

JSON, TENSORS = "palu_codec.json", "palu_codec.safetensors"
REPORT = "codec_report.json"  # of palu-calibrate, for people and dashboards; a codec is whole without it
VERSION = 1
DRIFT = "drift"  # among the facts: what ``drift`` is on text like the calibration's, [of K, of V] by layer


@dataclass(frozen=True)
class Codec:
    """The codecs of a model's attention layers by their numbers, and what else its file says.

    ``model`` names the model and holds its ``digest``; see ``digest``. Layers that are not there stay dense.
    """

    layers: Mapping[int, LayerCodec]
    model: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.bytes_per_token for layer in self.layers.values())


def save_codec(directory: Path, codec: Codec) -> None:
    """Writes both files into a directory that exists."""
    layers = {str(number): _layer_json(layer) for number, layer in codec.layers.items()}
    about = {"format": VERSION, "model": dict(codec.model), "layers": layers, **codec.facts}
    tensors = {
        f"layers.{number}.{name}": tensor.clone(memory_format=torch.contiguous_format)  # none share memory
        for number, layer in codec.layers.items()
        for name, tensor in _tensors(layer).items()
    }
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    (directory / JSON).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_codec(directory: Path) -> Codec:
    """Reads a codec. Raises CheckpointError, one sentence, for files that are missing, damaged or of wrong shapes."""
    about = read_json(directory / JSON)
    if about.get("format") != VERSION:
        raise CheckpointError(f"{directory / JSON} has format {about.get('format')!r}; this palu-vllm reads {VERSION}.")
    try:
        tensors = load_file(directory / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory / TENSORS} cannot be read ({error}); write the codec again with palu-calibrate."
        ) from error
    try:
        layers = {int(number): _layer(number, said, tensors) for number, said in about["layers"].items()}
        facts = {name: value for name, value in about.items() if name not in ("format", "model", "layers")}
        return Codec(layers, about["model"], facts)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory} is not a whole codec ({type(error).__name__}: {error}); write it again with palu-calibrate."
        ) from error


def _layer_json(layer: LayerCodec) -> dict[str, Any]:
    kv_heads, head_dim = layer.key.sink.shape
    return {
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "value_dim": layer.value.sink.shape[1],
        "groups": layer.num_groups,
        "key": [[tier.size, tier.bits] for tier in layer.key.form.tiers],
        "value": [[tier.size, tier.bits] for tier in layer.value.form.tiers],
    }


def _tensors(layer: LayerCodec) -> dict[str, torch.Tensor]:
    return {
        "key.decoder": layer.key.decoder,
        "key.sink": layer.key.sink,
        "value.decoder": layer.value.decoder,
        "value.sink": layer.value.sink,
        "centre_cos": layer.centre_cos,
        "centre_sin": layer.centre_sin,
        "frequency_of": layer.frequency_of,
        "frequencies": layer.frequencies,
        "value_mean": layer.value_mean,
    }


def _layer(number: str, said: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> LayerCodec:
    own = {name: tensors[f"layers.{number}.{name}"] for name in (
        "key.decoder", "key.sink", "value.decoder", "value.sink", "centre_cos", "centre_sin", "frequency_of",
        "frequencies", "value_mean",
    )}  # fmt: skip
    key, value = (CodedFormat(tuple(Tier(*tier) for tier in said[side])) for side in ("key", "value"))
    heads, groups = said["num_kv_heads"], said["groups"]
    of_keys, of_values = (heads, said["head_dim"]), (heads, said["value_dim"])
    expected = {
        "key.decoder": (groups, heads // groups * said["head_dim"], key.rank),
        "value.decoder": (groups, heads // groups * said["value_dim"], value.rank),
        "key.sink": of_keys,
        "centre_cos": of_keys,
        "centre_sin": of_keys,
        "value.sink": of_values,
        "value_mean": of_values,
        "frequency_of": (said["head_dim"],),
        "frequencies": own["frequencies"].shape[:1],
    }
    for name, shape in expected.items():
        if tuple(own[name].shape) != tuple(shape):
            raise ValueError(f"layers.{number}.{name} is {list(own[name].shape)}, expected {list(shape)}")
        if not own[name].isfinite().all():
            raise ValueError(f"layers.{number}.{name} holds numbers that are not finite")
    if own["frequency_of"].min() < 0 or own["frequency_of"].max() >= len(own["frequencies"]):
        raise ValueError(f"layers.{number}.frequency_of names frequencies that are not there")
    return LayerCodec(
        SideCodec(key, own["key.decoder"], own["key.sink"]),
        SideCodec(value, own["value.decoder"], own["value.sink"]),
        own["centre_cos"],
        own["centre_sin"],
        own["frequency_of"],
        own["frequencies"],
        own["value_mean"],
    )
