"""What a model is: a fingerprint of its files, and the context that it has."""

import hashlib
import json
from pathlib import Path
from typing import Any

from palu_vllm.format.codec.file import JSON, REPORT

DECISIVE = ("config.json", JSON, "*.safetensors", "*.bin", "tokenizer*", "special_tokens_map.json", "chat_template*")


def fingerprint(directory: Path) -> str:
    """A hash of the names and contents of everything that decides what a model answers."""
    total = hashlib.sha256()
    for file in sorted({file for pattern in DECISIVE for file in directory.glob(pattern)}):
        with file.open("rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()[:16]


def model_directory(model: str) -> Path:
    """A local checkpoint, or the snapshot of a hub id. Raises ValueError where there is neither."""
    directory = Path(model)
    if (directory / "config.json").is_file():
        return directory
    if directory.exists() or model.count("/") != 1:
        raise ValueError(f"{model} is not a model: expected a directory with config.json, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} is neither a directory nor can it be had from the hub ({error}).") from error


def context_of(directory: Path) -> int:
    """Tokens of the model's context. Raises ValueError if config.json does not say."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    length = config.get("text_config", config).get("max_position_embeddings")
    if not isinstance(length, int):
        raise ValueError(f"{directory / 'config.json'} has no max_position_embeddings.")
    return length


def describe(name: str, directory: Path, dtype: str, kv_cache_dtype: str, codec: Path | None = None) -> dict[str, Any]:
    """The ``model`` entry of a result file. Two files with the same are of the same model, served alike.

    Raises ValueError for a ``codec`` that is none.
    """
    called = Path(name).name if Path(name).is_absolute() else name  # folders are the machine's
    known = {"name": called, "fingerprint": fingerprint(directory), "dtype": dtype, "kv_cache_dtype": kv_cache_dtype}
    report = directory / "palu_report.json"
    if codec is not None:
        if not (codec / JSON).is_file():
            raise ValueError(f"{codec} has no {JSON}; make one with `palu-calibrate {name} {codec}`.")
        known |= {"name": f"{called} with {codec.name}", "fingerprint": f"{known['fingerprint']}-{fingerprint(codec)}"}
        report = codec / REPORT
    if report.is_file():
        written = json.loads(report.read_text(encoding="utf-8"))
        known |= {entry: written[entry] for entry in ("bytes_per_token", "dense_bytes_per_token")}
    return known
