"""What a served codec is and costs: for the log, the metrics, the info route and the dashboard."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vllm.config import VllmConfig

from palu_vllm.attention_backend.codec.served import (
    CODEC,
    codec_directory,
    dense_bytes_per_token,
    files_digest,
    named_codec,
)
from palu_vllm.attention_backend.settings import palu_settings as settings_of
from palu_vllm.format.codec.file import REPORT, Codec
from palu_vllm.kernels.choose import codec_path
from palu_vllm.version import __version__

FIRST_TOKEN = "around means of its own"


@dataclass(frozen=True)
class CodecFacts:
    """Bytes are those of the coded layers on all devices together, scales counted."""

    codec: str  # the name of its directory, or its hub id
    digest: str  # of its files, shortened
    base_model: str
    layers: tuple[int, ...]  # that are coded
    layers_left_dense: tuple[int, ...]  # of the model, that the codec does not list
    bits_k: tuple[float, ...]  # per number of a coded layer, scales left out
    bits_v: tuple[float, ...]
    group_sizes: tuple[int, ...]  # KV heads that are coded together, per coded layer
    predicted_kl: float | None  # from the dense model, by its report
    kl: float | None  # as palu-calibrate measured it on held-out samples
    first_token: str  # what position 0, the attention sink, is coded around
    kernels: str
    dtype: str  # that is served, and that the dense bytes are of
    bytes_per_token: int
    dense_bytes_per_token: int

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> Self:
        """Of a server whose settings name a codec. Raises CheckpointError."""
        name = str(settings_of(vllm_config)[CODEC])
        directory, codec = codec_directory(name), named_codec(name)
        model = vllm_config.model_config
        dtype = str(model.dtype).removeprefix("torch.")
        losses = reported_losses(directory)
        return cls(
            codec=directory.name if Path(name).expanduser().is_dir() else name,
            digest=files_digest(directory),
            base_model=str(codec.model.get("name", "")),
            layers=tuple(codec.layers),
            layers_left_dense=_left(codec.layers, model.model_arch_config.total_num_hidden_layers),
            predicted_kl=losses.get("predicted_kl"),
            kl=losses.get("kl"),
            first_token=FIRST_TOKEN,
            kernels=codec_path(vllm_config.device_config.device_type),
            dtype=dtype,
            bytes_per_token=codec.bytes_per_token,
            dense_bytes_per_token=dense_bytes_per_token(codec, dtype),
            **_formats(codec),
        )

    @property
    def compression_ratio(self) -> float:
        """Times fewer bytes than the dense cache of the same layers."""
        return self.dense_bytes_per_token / self.bytes_per_token

    @property
    def labels(self) -> dict[str, str]:
        """For ``palu_info``, as a compressed checkpoint has them."""
        size = span(self.group_sizes)
        return {
            "base_model": self.base_model, "group_size_k": size, "group_size_v": size, "bits_k": span(self.bits_k),
            "bits_v": span(self.bits_v), "value_path": "codec", "kernels": self.kernels,
        }  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        saved = self.dense_bytes_per_token - self.bytes_per_token
        ratio = {"compression_ratio": round(self.compression_ratio, 4), "saved_bytes_per_token": saved}
        return {"kind": "codec", **asdict(self), **ratio}

    def line(self) -> str:
        """For the log."""
        left = len(self.layers_left_dense)
        of_layers = f"{len(self.layers)} layers" + (f", {left} left dense" if left else "")
        tokens = "fewer bytes in them" if left else "the tokens"
        return (
            f"palu-vllm {__version__}: the codec {self.codec} ({self.digest}) for {of_layers}, {span(self.bits_k)} "
            f"bits in K and {span(self.bits_v)} in V, {self.bytes_per_token:,} bytes of KV cache per token in place of "
            f"{self.dense_bytes_per_token:,} in {self.dtype} ({self.compression_ratio:.2f}x {tokens}), "
            f"{self._losses()}, position 0 {self.first_token}, {self.kernels} attention"
        )

    def _losses(self) -> str:
        if self.kl is None:
            return "KL from the dense model not known"
        predicted = "" if self.predicted_kl is None else f" (predicted {self.predicted_kl:.4f})"
        return f"KL {self.kl:.4f} from the dense model{predicted}"


def reported_losses(directory: Path) -> dict[str, float]:
    """KL by the report that ``palu-calibrate`` leaves beside a codec; nothing where that is missing or damaged."""
    try:
        said = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = said if isinstance(said, Mapping) else {}
    return {name: float(found[name]) for name in ("predicted_kl", "kl") if isinstance(found.get(name), int | float)}


def span(numbers: Sequence[float]) -> str:
    """``3.7-4.8``, or ``4``."""
    low, high = (f"{round(each, 1):g}" for each in (min(numbers), max(numbers)))
    return low if low == high else f"{low}-{high}"


def _formats(codec: Codec) -> dict[str, tuple]:
    layers = list(codec.layers.values())
    return {
        "bits_k": tuple(round(layer.key.form.mean_bits, 3) for layer in layers),
        "bits_v": tuple(round(layer.value.form.mean_bits, 3) for layer in layers),
        "group_sizes": tuple(layer.num_kv_heads // layer.num_groups for layer in layers),
    }


def _left(coded: Collection[int], layers: int) -> tuple[int, ...]:
    return tuple(number for number in range(layers) if number not in coded)
