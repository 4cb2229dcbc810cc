"""Where an output comes from: command, tool, packages, digests of model and data."""

import hashlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from offline_compress.model.source import SourceModel
from offline_compress.run.versions import tool_version, version_of

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "pydantic")


def git_revision() -> str | None:
    """The commit of the checkout that this file is in, ``+`` where files differ from it; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def model_digest(source: SourceModel) -> str:
    """sha256 over the names and contents of ``config.json`` and all weight files."""
    total = hashlib.sha256()
    for path in sorted({source.directory / "config.json", *(tensor.file for tensor in source.tensors.values())}):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def provenance(source: SourceModel, calibration: str, calibration_digest: str | None) -> dict[str, Any]:
    return {
        "argv": sys.argv,
        "tool_version": tool_version(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {package: version_of(package) for package in PACKAGES},
        "platform": platform.platform(),
        "model": source.name,
        "model_revision": source.revision,
        "model_sha256": model_digest(source),
        "calibration": calibration,
        "calibration_sha256": calibration_digest,
    }
