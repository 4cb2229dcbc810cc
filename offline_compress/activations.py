"""The activations between two layers, on disk: memory holds one sample at a time."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from offline_compress.tensor_file import fill


class ActivationFile:
    """Equally large float32 samples ``[tokens, hidden]`` in an open file, by their number."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int]):
        self._file, self._shape = file, shape
        self._bytes = torch.float32.itemsize * shape[0] * shape[1]

    def write(self, number: int, sample: torch.Tensor) -> None:
        self._file.seek(number * self._bytes)
        self._file.write(memoryview(sample.float().cpu().contiguous().numpy()).cast("B"))

    def read(self, number: int) -> torch.Tensor:
        sample = torch.empty(self._shape, dtype=torch.float32)
        self._file.seek(number * self._bytes)
        fill(sample, self._file)
        return sample


@contextmanager
def activation_file(directory: Path, shape: tuple[int, int]) -> Iterator[ActivationFile]:
    """A file of ``directory`` without a name: gone when it is closed, also if the process is killed."""
    with tempfile.TemporaryFile(dir=directory) as file:
        yield ActivationFile(file, shape)
