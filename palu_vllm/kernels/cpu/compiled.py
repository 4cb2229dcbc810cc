"""The C++ library of this folder, compiled for this machine at first use and kept for later ones.

Nothing is compiled when the package is built, so that no instruction of the building machine gets into a wheel.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("g++", "c++", "clang++")
OPTIONS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-w")


class UnavailableError(RuntimeError):
    """Why the library does not run here, in one sentence."""


def compiler() -> str:
    """``CXX``, or the first one there is. Raises UnavailableError without one."""
    wanted = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else COMPILERS)), None)
    if found is None:
        raise UnavailableError(f"no C++ compiler was found ({wanted or ', '.join(COMPILERS)})")
    return found


def cache_folder() -> Path:
    """Where compiled libraries are kept: ``PALU_CACHE``, or ``palu_vllm`` in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PALU_CACHE") or Path(user) / "palu_vllm")


def options() -> list[str]:
    """Of every compilation: torch's headers, and which of its vectors this machine has."""
    from torch.utils.cpp_extension import include_paths

    capability = torch.backends.cpu.get_cpu_capability()
    defined = [f"CPU_CAPABILITY={capability}", f"CPU_CAPABILITY_{capability}", "AT_PER_OPERATOR_HEADERS"]
    return [*OPTIONS, *(f"-D{name}" for name in defined), *(f"-I{path}" for path in (SOURCES, *include_paths()))]


def processor() -> str:
    """What this machine's instructions are, as the kernel names them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join(sorted(set(named))) or platform.processor()


def key(command: Sequence[str]) -> str:
    """What a compiled library depends on: sources, versions, options and this machine's processor."""
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    given = [part for part in command if not part.startswith("-I")]  # torch's headers are those of its version
    parts = [torch.__version__, platform.machine(), processor(), version, *given]
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(SOURCES.rglob("*.?pp")):
        digest.update(str(path.relative_to(SOURCES)).encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def build(command: Sequence[str], target: Path) -> None:
    """Compiles all sources side by side and links them to ``target``, which appears whole or not at all."""
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = {path: Path(folder) / f"{path.stem}.o" for path in sorted(SOURCES.rglob("*.cpp"))}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda pair: run([*command, "-c", str(pair[0]), "-o", str(pair[1])]), objects.items()))
        linked = Path(folder) / target.name
        # OpenMP is torch's own: a second one would have threads of its own
        rest = [f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}", "-o", str(linked)]
        run([command[0], "-shared", *map(str, objects.values()), *rest])
        linked.replace(target)


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise UnavailableError(f"{Path(command[0]).name} failed: {' '.join(errors[:1])}")


def compiled() -> Path:
    """The library, built unless it was before. One process builds, others wait for it. Raises UnavailableError."""
    command = [compiler(), *options()]
    target = cache_folder() / f"palu_cpu-{key(command)}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                tell("compiling the CPU kernels for this machine, once; this takes a minute ...")
                start = time.monotonic()
                build(command, target)
                tell(f"compiled the CPU kernels in {time.monotonic() - start:.0f} s")
    except OSError as error:
        raise UnavailableError(f"{target.parent} cannot be written ({error.strerror})") from error
    return target


def tell(sentence: str) -> None:
    print(f"palu-vllm: {sentence}", file=sys.stderr, flush=True)


@cache
def why_not() -> str | None:
    """None once the library is loaded, else why it cannot be, in one sentence."""
    try:
        torch.classes.load_library(str(compiled()))
    except (UnavailableError, OSError) as error:
        return str(error)
    return None
