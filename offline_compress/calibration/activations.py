"""Activations between two layers lie on disk, so that memory holds one sample at a time.

Plain reads and writes instead of a memory map: pages of a map count as resident memory of the process, as many of them
as the system cares to keep, and the peak could not be promised.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from offline_compress.model.tensor_file import fill

INPUTS = "layer-inputs-"


class ActivationFile:
    """Equally large float32 samples ``[tokens, hidden]`` in an open file, by their number."""

    def __init__(self, file: io.BufferedReader | io.BufferedRandom, shape: tuple[int, int]):
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


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of layers, a file each; whoever is killed while one is written finds the one before it complete."""

    directory: Path
    shape: tuple[int, int]

    @contextmanager
    def reading(self, layer: int) -> Iterator[ActivationFile]:
        """Those of ``layer``. Raises OSError where they are not there."""
        with self._path(layer).open("rb") as file:
            yield ActivationFile(file, self.shape)

    @contextmanager
    def writing(self, layer: int) -> Iterator[ActivationFile]:
        """New ones for ``layer``, on the disk when the block ends."""
        with self._path(layer).open("w+b") as file:
            yield ActivationFile(file, self.shape)
            file.flush()
            os.fsync(file.fileno())

    def keep_only(self, layer: int) -> None:
        """Removes all files but that of ``layer``."""
        remove_inputs(self.directory, self._path(layer).name)

    def _path(self, layer: int) -> Path:
        return self.directory / f"{INPUTS}{layer:05d}"


def remove_inputs(directory: Path, but: str = "") -> None:
    """Removes the files of :class:`LayerInputs`, ``but`` one name."""
    for path in directory.glob(f"{INPUTS}*"):
        if path.name != but:
            path.unlink()
