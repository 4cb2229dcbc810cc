"""Where and with what a number was measured; written beside every result."""

import json
import platform
import sys
from pathlib import Path
from typing import Any

from offline_compress.run.provenance import ROOT, described, versions

CARRIED = ROOT / ".gpu" / "commit" / "commit.json"
PACKAGES = ("torch", "vllm", "transformers", "triton", "palu-vllm")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def provenance() -> dict[str, Any]:
    """Command, commit, versions and machine, ready for JSON."""
    import torch

    return {
        "command": ["python", "-m", *[_without_folders(part) for part in _module_and_arguments()]],
        "commit": described("--dirty") or carried_commit() or "unknown",
        "versions": versions(PACKAGES) | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{_cpu_name()}, {torch.get_num_threads()} threads",
    }


def carried_commit() -> str | None:
    """The commit that ``benchmarks.gpu.prepare`` wrote beside a copy of the tree without git; None where it did not."""
    return json.loads(CARRIED.read_text())["commit"] if CARRIED.exists() else None


def _without_folders(argument: str) -> str:
    """A path as it is from the root of the repository, of one outside the name alone: folders are the machine's."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _module_and_arguments() -> list[str]:
    module = sys.modules["__main__"].__spec__
    return [module.name if module else Path(sys.argv[0]).name, *sys.argv[1:]]
