"""Puts together what a GPU session takes along: ``python -m benchmarks.gpu.prepare [--parts DIR]``.

A GPU machine gets a copy of the tree without git, has no network and no vLLM. So this writes into ``.gpu/``, which git
ignores: the commit; a wheel of this package; the shipped model compressed and with a codec, and the tokens that a CPU
gives; and the parts of vLLM's CUDA build, if ``--parts`` has them. It ends with what each call must carry, and how much
that is.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import commands
from benchmarks.common.provenance import ROOT
from benchmarks.gpu.engine import SHIPPED
from offline_compress.run.provenance import described

MEBIBYTE = 1 << 20
MOST = 64 * MEBIBYTE  # of one call, the tree included
PACKAGED = ("palu_vllm", "offline_compress", "setup.py", "README.md", "LICENSE", "palu_vllm_autoload.pth")


def write_commit(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "commit.json").write_text(json.dumps({"commit": described("--dirty") or "unknown"}) + "\n")


def build_wheel(out: Path) -> None:
    """From a copy, because a build leaves folders behind."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PACKAGED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", out.resolve(), "."], cwd=folder, check=True)


def make_models(out: Path, arms: tuple[str, ...]) -> None:
    """Compressed, with a codec, and the tokens of each arm by vLLM on this machine's CPU."""
    out.mkdir(parents=True, exist_ok=True)
    if "palu" in arms:
        commands.compress(out / "palu", "--rank-ratio", "0.5")
    if "codec" in arms:
        commands.calibrate(out / "codec")
    with tempfile.NamedTemporaryFile() as rows:
        for arm in arms:
            commands.run(
                "benchmarks.gpu.engine", "tokens", "--arm", arm, "--models", out, "--rows", rows.name, "--write"
            )


def copy_parts(parts: Path, out: Path) -> list[Path]:
    """Raises FileNotFoundError where there are none."""
    found = sorted(parts.glob("part-[0-9][0-9]"))
    if not found:
        raise FileNotFoundError(f"{parts} has no part-00; expected what offline_gpu_parts.py pack wrote.")
    return [Path(shutil.copytree(part, out / part.name, dirs_exist_ok=True)) for part in found]


def size_of(*paths: Path) -> int:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def tree_size() -> int:
    """Of the files that travel in every call."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def calls(out: Path, parts: list[Path], tree: int) -> list[str]:
    """One line per call: its command, what it carries, and its MiB with the tree."""
    others = [[out / "commit"], *([out / "commit", part] for part in parts)]
    others[-1] += [out / "wheel", out / "models"] if parts else []
    lines = []
    for number, carried in enumerate(others):
        size = tree + size_of(*carried)
        command = f"bash benchmarks/gpu/session.sh {min(number, 1) + 1}"
        names = ", ".join(str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name for path in carried)
        mark = "  TOO MUCH" if size > MOST else ""
        lines.append(f"{command}; carry {names}; {size / MEBIBYTE:.1f} of {MOST // MEBIBYTE} MiB{mark}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.prepare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--parts", type=Path, help="folder with part-00, part-01, ... of vLLM's CUDA build")
    parser.add_argument("--rehearse", action="store_true", help="the commit and the dense model's tokens alone")
    options = parser.parse_args()
    out = options.out.resolve()
    write_commit(out / "commit")
    make_models(out / "models", ("dense",) if options.rehearse else SHIPPED)
    if not options.rehearse:
        build_wheel(out / "wheel")
    parts = copy_parts(options.parts, out / "parts") if options.parts else []
    print("\n".join(calls(out, parts, tree_size())))


if __name__ == "__main__":
    main()
