"""Tensors of safetensors files, read with plain reads.

The safetensors library maps whole files, and mapped pages count as resident memory. Here a tensor costs its own bytes.
Headers are read after the library has checked them.
"""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from palu_vllm.format.checkpoint import CheckpointError

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class StoredTensor(NamedTuple):
    """Where a tensor lies: its first byte in ``file``, its dtype and shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self) -> torch.Tensor:
        """All of it, as stored."""
        return self._at([0], self.shape)

    def blocks(self, rows: int) -> Iterator[torch.Tensor]:
        """Runs of at most ``rows`` rows, in order; a tensor without dimensions is one block."""
        if not self.shape:
            yield self.read()
            return
        for start in range(0, self.shape[0], rows):
            yield self._at([start], (min(rows, self.shape[0] - start), *self.shape[1:]))

    def select(self, rows: list[int]) -> torch.Tensor:
        """``[len(rows), ...]``: these rows and no other are read."""
        return self._at(rows, (1, *self.shape[1:]))

    def rows(self, start: int, count: int) -> "StoredTensor":
        """Where ``count`` rows from ``start`` on lie."""
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        return self._replace(offset=self.offset + start * row, shape=(count, *self.shape[1:]))

    def _at(self, starts: list[int], shape: tuple[int, ...]) -> torch.Tensor:
        """Pieces of ``shape`` from the rows ``starts`` on, one after the other."""
        piece, row = self.dtype.itemsize * math.prod(shape), self.dtype.itemsize * math.prod(self.shape[1:])
        buffer = torch.empty(len(starts) * piece, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as file:
            for start, part in zip(starts, buffer.split(piece) if piece else (), strict=False):
                file.seek(self.offset + start * row)
                fill(part, file)
        values = buffer.view(self.dtype)
        return values.view(len(starts) * shape[0], *shape[1:]) if shape else values[0]


def fill(part: torch.Tensor, file: io.FileIO | io.BufferedReader | io.BufferedRandom) -> None:
    """Reads the bytes of ``part``, contiguous and on the CPU. Raises CheckpointError if the file ends before."""
    view = memoryview(part.view(-1).view(torch.uint8).numpy())
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(f"{file.name} ended while it was read; fetch it again.")
        view = view[count:]


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """``{name: where it lies}`` of one file. Raises CheckpointError for a dtype that no supported model has."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{name} in {file} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}, "
                "give the checkpoint before quantization."
            )
    return {
        name: StoredTensor(file, 8 + size + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in header.items()
    }
