"""Versions of installed packages, without importing any of them, so that ``--version`` is quick."""

import argparse
from importlib import metadata


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tool_version() -> str:
    """The installed version of palu-vllm, ``source`` where it runs without being installed."""
    return version_of("palu-vllm") or "source"


def add_version(parser: argparse.ArgumentParser) -> None:
    """The option ``--version`` of every command."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {tool_version()}")
