"""Resident memory of this process, file-backed pages included."""

import ctypes
import resource
import sys
from pathlib import Path

PAGE_BYTES = resource.getpagesize()


def peak_memory_bytes() -> int:
    """The most that was ever resident, since the process began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """What is resident now; the peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * PAGE_BYTES if statm.exists() else peak_memory_bytes()


def release_freed_memory() -> None:
    """Gives freed blocks back to the system; glibc keeps those below 32 MiB, which adds up over a layer."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
