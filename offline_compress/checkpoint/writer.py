"""Writes safetensors files whose tensors arrive one at a time, in any order.

The safetensors library writes a file from a dictionary that holds all of it. Here the header is written first, from
names, dtypes and shapes that are known beforehand, and each tensor goes to its place as soon as it is computed.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from offline_compress.model.tensor_file import DTYPE_NAMES, StoredTensor
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import INDEX, SINGLE

MAX_SHARD_BYTES = 5_000_000_000


class TensorSpec(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def plan_shards(specs: Iterable[TensorSpec], max_bytes: int) -> dict[str, list[TensorSpec]]:
    """``{file name: tensors}`` in order, each file within ``max_bytes`` unless a single tensor is larger."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.num_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.num_bytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


class CheckpointWriter:
    """The safetensors files of one checkpoint, with their index where there are several."""

    def __init__(self, directory: Path, specs: Iterable[TensorSpec], max_shard_bytes: int, resume: bool = False):
        """With ``resume`` the files are there already; raises CompressionError unless they are as planned."""
        self._directory, self._resumes = directory, resume
        self._shards = plan_shards(specs, max_shard_bytes)
        self._places: dict[str, tuple[Path, int, TensorSpec]] = {}
        for file, shard in self._shards.items():
            self._start(directory / file, shard)

    def _start(self, path: Path, shard: list[TensorSpec]) -> None:
        """Writes the header and reserves the rest; wide dtypes first, so that every tensor is aligned."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset, ordered = 0, sorted(shard, key=lambda spec: -spec.dtype.itemsize)
        for spec in ordered:
            end = offset + spec.num_bytes
            header[spec.name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._reserve(path, len(text).to_bytes(8, "little") + text, offset)
        position = 8 + len(text)
        for spec in ordered:
            self._places[spec.name] = (path, position, spec)
            position += spec.num_bytes

    def _reserve(self, path: Path, header: bytes, num_bytes: int) -> None:
        if not self._resumes:
            with path.open("wb") as file:
                file.write(header)
                file.truncate(len(header) + num_bytes)
            return
        same = path.exists() and path.stat().st_size == len(header) + num_bytes
        if same:
            with path.open("rb") as file:
                same = file.read(len(header)) == header
        if not same:
            raise CompressionError(f"{path} is not as it was left; delete {path.parent.parent} and begin again.")

    def keep(self, prefix: str) -> None:
        """Tensors whose names begin with ``prefix`` were written by the run that this one goes on with."""
        for name in [name for name in self._places if name.startswith(prefix)]:
            del self._places[name]

    def write(self, name: str, chunks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor given as consecutive runs of rows, cast to the planned dtype.

        Raises ValueError unless its size is as planned, CompressionError for a value that the dtype cannot hold.
        """
        path, position, spec = self._places.pop(name)
        written = 0
        with path.open("r+b") as file:
            file.seek(position)
            for chunk in chunks:
                written += file.write(_as_bytes(chunk, spec))
        if written != spec.num_bytes:
            raise ValueError(f"{name} has {written} bytes, expected {spec.num_bytes} for shape {list(spec.shape)}")

    def finish(self) -> None:
        """Flushes to disk and writes the index. Raises ValueError if a planned tensor was never written."""
        if self._places:
            raise ValueError(f"tensor {min(self._places)} was planned and not written")
        self.flush()
        if len(self._shards) > 1:
            self._write_index()

    def flush(self) -> None:
        """Puts on the disk what has been written so far."""
        for file in self._shards:
            with (self._directory / file).open("rb") as handle:
                os.fsync(handle.fileno())

    def _write_index(self) -> None:
        weight_map = {spec.name: file for file, shard in self._shards.items() for spec in shard}
        total = sum(spec.num_bytes for shard in self._shards.values() for spec in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def overwrite(stored: StoredTensor, name: str, values: torch.Tensor) -> None:
    """Writes ``values`` over a tensor of a finished file, cast to its dtype.

    Raises ValueError for another shape, CompressionError for a value that the dtype cannot hold.
    """
    if values.shape != stored.shape:
        raise ValueError(f"{name} has shape {list(values.shape)}, expected {list(stored.shape)}")
    with stored.file.open("r+b") as file:
        file.seek(stored.offset)
        file.write(_as_bytes(values, TensorSpec(name, stored.dtype, stored.shape)))


def _as_bytes(values: torch.Tensor, spec: TensorSpec) -> memoryview:
    return _fitted(values, spec).contiguous().reshape(-1).view(torch.uint8).numpy().data


def _fitted(values: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    cast = values.to(device="cpu", dtype=spec.dtype)
    if cast.dtype != values.dtype and cast.is_floating_point() and not torch.isfinite(cast).all():
        raise CompressionError(
            f"{spec.name} has values that {spec.dtype} cannot hold; use --dtype bfloat16 or float32."
        )
    return cast
