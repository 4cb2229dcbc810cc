"""What workers know of drift reaches the process that answers ``/metrics`` by small files on the machine of both.

vLLM carries no statistics of a plugin from a worker to its API server. vLLM internals used:
``VllmConfig.instance_id`` and ``ParallelConfig.data_parallel_index``, until it does.
"""

import atexit
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm.config import VllmConfig


@dataclass(frozen=True)
class Drift:
    """Ratios of every layer's errors to those expected: of its keys, of its values."""

    layers: Mapping[str, list[float]]
    tokens: int  # that were looked at

    @property
    def mean(self) -> float:
        ratios = [ratio for pair in self.layers.values() for ratio in pair]
        return sum(ratios) / len(ratios)

    @property
    def largest(self) -> float:
        return max(ratio for pair in self.layers.values() for ratio in pair)


def folder() -> Path:
    """This user's, nobody else's. Raises OSError where there is none to be had."""
    path = Path(tempfile.gettempdir()) / f"palu-drift-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} is not a folder of this user")
    return path


def engine_name(vllm_config: VllmConfig, engine: int) -> str:
    """What the files of one engine begin with; engines of one server share the first part of their instance's id."""
    return f"{vllm_config.instance_id.partition('_')[0]}-{engine}-"


class DriftFile:
    """The file of one worker and KV cache group. Where it cannot be written, nothing is known and serving goes on."""

    def __init__(self, vllm_config: VllmConfig, group: str) -> None:
        parallel = vllm_config.parallel_config
        self._name = f"{engine_name(vllm_config, parallel.data_parallel_index)}{parallel.rank}-{group}.json"

    def write(self, layers: Mapping[str, list[float]], tokens: int) -> None:
        """A reader sees all of it or what was there before."""
        try:
            path = folder() / self._name
            new = path.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"layers": dict(layers), "tokens": tokens}), encoding="utf-8")
            new.replace(path)
        except OSError:
            return


class DriftFiles:
    """What the workers of one engine have written."""

    def __init__(self, vllm_config: VllmConfig, engine: int) -> None:
        self._name, self._changed = engine_name(vllm_config, engine), -1
        self._drift: Drift | None = None
        atexit.register(self.remove)

    def read(self) -> Drift | None:
        """All workers and groups together, None where there is nothing yet. Opens files only where one is new."""
        try:
            changed = folder().stat().st_mtime_ns
            if changed != self._changed:
                files = [file for file in self._files() if file.suffix == ".json"]
                self._drift = joined([json.loads(file.read_text(encoding="utf-8")) for file in files])
                self._changed = changed
        except (OSError, ValueError):
            return self._drift
        return self._drift

    def remove(self) -> None:
        """The files of an engine that has ended."""
        try:
            for file in self._files():
                file.unlink(missing_ok=True)
        except OSError:
            return

    def _files(self) -> list[Path]:
        return [file for file in folder().iterdir() if file.name.startswith(self._name)]


def joined(parts: list[dict]) -> Drift | None:
    """Layers of several workers; of one layer on several devices the ratios' mean, over those that are numbers."""
    found: dict[str, list[list[float]]] = {}
    for part in parts:
        for layer, pair in part["layers"].items():
            found.setdefault(layer, []).append(pair)
    layers = {layer: _means(pairs) for layer, pairs in found.items()}
    known = {layer: pair for layer, pair in layers.items() if pair}
    return Drift(known, max(part["tokens"] for part in parts)) if known else None


def _means(pairs: list[list[float]]) -> list[float]:
    sides = ([ratio for ratio in side if ratio == ratio] for side in zip(*pairs, strict=True))
    return [sum(side) / len(side) for side in sides if side]
