"""Where an output or a result comes from: versions, the commit, digests of files. Nothing heavy is imported."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "pydantic")


def version_of(package: str) -> str | None:
    """Returns the installed version of a package without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the version of every package, None where it is not installed."""
    return {package: version_of(package) for package in packages}


def tool_version() -> str:
    """Returns the installed version of palu-vllm, ``source`` where it runs without being installed."""
    return version_of("palu-vllm") or "source"


def described(*arguments: str) -> str | None:
    """Returns what ``git describe --always`` says of the checkout that this file is in; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_revision() -> str | None:
    """Returns the whole commit, with a ``+`` behind it where files differ from it; None outside of a checkout."""
    return described("--abbrev=40", "--dirty=+", "--exclude=*")


def files_digest(files: Iterable[Path]) -> str:
    """Returns a sha256 over the names and contents of files, in the order of their paths."""
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def program_facts() -> dict[str, Any]:
    """Returns the command that runs, the versions of the tool and of what it stands on, and the machine's kind."""
    return {
        "argv": sys.argv,
        "tool_version": tool_version(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "platform": platform.platform(),
    }
