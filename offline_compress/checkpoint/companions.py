"""Files of a model that go along unchanged: all that is not weights, index, configuration or code.

Code and pickles stay behind wherever they lie, for nobody shall run them (SECURITY.md). So do hidden files.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

WEIGHTS = (
    ".safetensors", ".gguf", ".ggml", ".h5", ".hdf5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".mlmodel",
    ".npz", ".npy", ".ot", ".nemo", ".distcp",
)  # fmt: skip
PICKLES = (
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".t7", ".mar",
)  # fmt: skip
CODE = (
    ".py", ".pyc", ".pyi", ".pyx", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".sh", ".bash", ".bat", ".cmd",
    ".ps1", ".js", ".mjs", ".ts", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".rs", ".go", ".java",
    ".jar", ".class", ".rb", ".pl", ".php", ".lua", ".wasm", ".whl", ".egg",
)  # fmt: skip
INDEX = ".index.json"
# configurations of other weights than these, and what is written anew
CONFIGURATIONS = ("config.json", "params.json", "adapter_config.json", "quantize_config.json", "hf_quant_config.json")
WRITTEN_ANEW = ("readme.md", "palu_report.json", "palu_report.png")
# how programs and pickles begin, whatever they are called
BEGINNINGS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x7fELF", b"MZ", b"PK\x03\x04", b"#!")


class Companions(NamedTuple):
    """Paths below a model directory: those that go along, and those that stay behind."""

    copied: list[str]
    left_behind: list[str]


def companions(directory: Path) -> Companions:
    """Returns which files of a model go along. Links were checked when the model was opened."""
    found = Companions([], [])
    for path in _files(directory):
        (found.copied if goes_along(path, directory) else found.left_behind).append(str(path.relative_to(directory)))
    return found


def _files(directory: Path) -> Iterator[Path]:
    """All files in order, those behind links to folders too; a link back to a folder that it lies in is passed over."""
    for folder, folders, files in os.walk(directory, followlinks=True):
        here = Path(folder)
        folders[:] = [name for name in sorted(folders) if not here.resolve().is_relative_to((here / name).resolve())]
        yield from (here / name for name in sorted(files))


def goes_along(path: Path, directory: Path) -> bool:
    """Whether a file below ``directory`` is neither weights, index, configuration nor code, nor hidden."""
    name, inside = path.name.lower(), path.relative_to(directory)
    if any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
        return False
    if name in CONFIGURATIONS or name.endswith(INDEX) or (inside.parent == Path() and name in WRITTEN_ANEW):
        return False
    if path.suffix.lower() in (*WEIGHTS, *PICKLES, *CODE) or not path.is_file():
        return False
    with path.open("rb") as file:
        return not file.read(4).startswith(BEGINNINGS)


def copy_companions(source: Path, out: Path) -> None:
    """Copies the files that go along, each as a file of its own where it was a link."""
    for name in companions(source).copied:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
