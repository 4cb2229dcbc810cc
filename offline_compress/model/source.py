"""The dense model that is read: where it is, whether it can be compressed, and its tensors one by one.

Nothing of the model is executed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from offline_compress.model.joined_matrices import joined_rows, without_joined
from offline_compress.model.links import refuse_links_outside
from offline_compress.model.tensor_file import StoredTensor, stored_tensors
from offline_compress.run.errors import CompressionError
from palu_vllm.families import FAMILIES
from palu_vllm.format.checkpoint import INDEX, SINGLE, read_json, shard_of_tensor
from palu_vllm.format.config import DTYPE_BYTES, AttentionGeometry, rope_type
from palu_vllm.huggingface.tokenizer_agreement import hub_name

CHUNK_BYTES = 16 << 20
READING_BYTES = 3 * CHUNK_BYTES  # a chunk as it is read, widened and copied
# Microsoft publishes Phi-3 with the code that transformers has since taken in; it is neither run nor passed on
TAKEN_IN = {"phi3": {"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"}}
# what is not fetched: code, pickles, and the same weights once more in other forms
NOT_FETCHED = [
    "original/*", "consolidated*", "onnx/*", "*.gguf", "*.h5", "*.msgpack", "*.onnx*", "*.bin", "*.pt", "*.pth",
    "*.ckpt", "*.pkl", "*.py", "*.ipynb", "*.sh", "*.so",
]  # fmt: skip


@dataclass(frozen=True)
class SourceModel:
    """A dense checkpoint on disk whose configuration and tensor shapes were found good."""

    directory: Path
    name: str
    revision: str | None
    config: Mapping[str, Any]
    geometry: AttentionGeometry
    tensors: Mapping[str, StoredTensor]
    dtype: str

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored."""
        return self.tensors[name].read()

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor in runs of rows of at most 16 MiB."""
        stored = self.tensors[name]
        rows = stored.shape[0] if stored.shape else 1
        return stored.blocks(max(1, CHUNK_BYTES * rows // max(1, stored.num_bytes)))


def find_directory(model: str) -> Path:
    """A local directory, or the local copy of a hub model. Raises CompressionError."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise CompressionError(f"{model} is not a directory; give a model directory or a hub id such as org/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=NOT_FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CompressionError(
            f"{model} is neither a directory nor a model that the hub gives ({type(error).__name__}); check the name."
        ) from error


def refuse_unsupported(config: Mapping[str, Any], directory: Path) -> None:
    """Raises CompressionError for a configuration that cannot be compressed or served."""
    kind = config.get("model_type")
    if str(kind).startswith("palu_") or "palu_config" in config:
        raise CompressionError(f"{directory} is already compressed; give the dense model that it was made from.")
    if _needs_code(config):
        raise CompressionError(
            f"{directory} needs code of its own (auto_map), which is never run; it cannot be compressed."
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise CompressionError(
            f"{directory} has quantized weights{_method(config)}, which cannot be decomposed; "
            "give the checkpoint before quantization."
        )
    if kind not in FAMILIES:
        raise CompressionError(f"model type {kind!r} is not supported; expected one of {', '.join(FAMILIES)}.")
    layer_types = set(config.get("layer_types") or ())
    if (kind in ("qwen2", "qwen3") and (config.get("use_sliding_window") or "sliding_attention" in layer_types)) or len(
        layer_types
    ) > 1:
        raise CompressionError(
            f"{directory} uses sliding windows in some layers, which is not supported; choose another model."
        )
    try:
        rope_type(config)
    except ValueError as error:
        raise CompressionError(f"{directory / 'config.json'}: {error}") from error


def _needs_code(config: Mapping[str, Any]) -> bool:
    named = config.get("auto_map") or {}
    taken_in = TAKEN_IN.get(str(config.get("model_type")), set())
    return not isinstance(named, Mapping) or not set(named.values()) <= taken_in


def _method(config: Mapping[str, Any]) -> str:
    section = config.get("quantization_config")
    method = section.get("quant_method") if isinstance(section, Mapping) else None
    return f" ({method})" if method else ""


def open_source(model: str) -> SourceModel:
    """Finds and checks a dense model: configuration, shards, the shape of every tensor.

    Raises CompressionError or CheckpointError with one sentence.
    """
    directory = find_directory(model)
    refuse_links_outside(directory)
    config = read_json(directory / "config.json")
    refuse_unsupported(config, directory)
    refuse_pickles(directory)
    try:
        geometry = AttentionGeometry.from_hf_config(config)
        joined = joined_rows(config, geometry)
    except ValueError as error:
        raise CompressionError(f"{directory / 'config.json'}: {error}") from error
    tensors = without_joined(tensors_of(directory), joined)
    name, revision = _identity(directory.resolve())
    return with_dtype(SourceModel(directory, name, revision, config, geometry, tensors, ""))


def refuse_pickles(directory: Path) -> None:
    """Raises CompressionError where there are pickled weights only, for reading those may run any code."""
    if not (directory / INDEX).exists() and not (directory / SINGLE).exists() and list(directory.glob("*.bin")):
        raise CompressionError(f"{directory} has pickled weights only (*.bin); convert them to safetensors first.")


def tensors_of(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint and where it lies; raises as :func:`shard_of_tensor`."""
    files = shard_of_tensor(directory)
    headers = {file: stored_tensors(file) for file in set(files.values())}
    return {name: headers[file][name] for name, file in files.items()}


def _identity(directory: Path) -> tuple[str, str | None]:
    """``(name, revision)``: both from the path for a hub snapshot, else the directory's own name."""
    name = hub_name(directory)
    return (directory.name, None) if name is None else (name, directory.name)


def with_dtype(source: SourceModel) -> SourceModel:
    """Fills in the dtype in which the model is served: the configuration's, else that of the stored weights."""
    named = source.config.get("dtype") or source.config.get("torch_dtype")
    if not named:
        named = str(source.tensors[min(source.tensors)].dtype).removeprefix("torch.")
    if named not in DTYPE_BYTES:
        raise CompressionError(f"{source.directory} has dtype {named!r}; expected one of {', '.join(DTYPE_BYTES)}.")
    return replace(source, dtype=named)


def check_finite(source: SourceModel) -> None:
    """Reads every tensor once. Raises CompressionError naming the first one with a NaN or an infinity."""
    for name in sorted(source.tensors):
        for rows in source.chunks(name):
            if rows.is_floating_point() and not torch.isfinite(rows).all():
                raise CompressionError(
                    f"{name} in {source.tensors[name].file} has values that are not finite; fetch the model again."
                )
