"""How locust is started with this package's locustfile."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.provenance import ROOT

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def locust_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments]


def locust_environment() -> dict[str, str]:
    """The environment in which locust finds this package."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
