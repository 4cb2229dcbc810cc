"""This module reads the resident memory of this process, file-backed pages included."""

import ctypes
import re
import resource
import sys
from pathlib import Path

PAGE_BYTES = resource.getpagesize()
# glibc's name for the size from which on a block is mapped by itself
M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 1 << 20


def peak_memory_bytes() -> int:
    """The most that was ever resident, since the program began."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would also count the parent, as it was when it started this process
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """What is resident now; the peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * PAGE_BYTES if statm.exists() else peak_memory_bytes()


def map_large_blocks() -> None:
    """From now on blocks of 1 MiB go back to the system the moment they are freed, in all of this process.

    glibc would raise that size to 32 MiB by itself and keep smaller ones: a third more at the peak of a 7B layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def release_freed_memory() -> None:
    """Gives freed blocks back to the system, where :func:`map_large_blocks` was not called or blocks are small."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
