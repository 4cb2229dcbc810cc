"""The Dockerfiles of servers, by hadolint and by what an operator relies on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.dockerfile import DIRECTORY, ROOT, of, pairs

FILES = [DIRECTORY / "Dockerfile", DIRECTORY / "Dockerfile.cpu"]
both = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every = pytest.mark.parametrize("path", [*FILES, DIRECTORY / "Dockerfile.router"], ids=lambda path: path.name)


@every
def test_hadolint_is_content(path):
    """With every rule; a line that is excepted says why in the comment above it."""
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if "hadolint ignore" in line:
            assert lines[number - 1].startswith("# ") and len(lines[number - 1]) > 40


@every
def test_runs_as_a_user_without_rights(path):
    user = of(path, "USER")[-1].text
    assert int(user) > 0
    assert any(f"useradd --uid {user} " in step.command for step in of(path, "RUN"))


def settings(path: Path) -> dict[str, str]:
    return {name: value for instruction in of(path, "ENV") for name, value in pairs(instruction)}


@both
def test_serves_with_the_plugin_and_without_the_developer_routes(path):
    assert settings(path)["VLLM_PLUGINS"] == "palu"
    assert "DEV_MODE" not in path.read_text()
    command = [*of(path, "ENTRYPOINT")[-1].arguments, *of(path, "CMD")[-1].arguments]
    assert command[:3] == ["vllm", "serve", "/models/model"]
    assert command[3:5] == ["--attention-backend", "palu"]


@every
def test_everything_is_written_below_tmp(path):
    """So that the rest of the container may be read only."""
    assert settings(path)["HOME"] == "/tmp" and of(path, "WORKDIR")[-1].text == "/tmp"
    assert not of(path, "VOLUME")


@both
def test_the_health_check_needs_nothing_but_python(path):
    [check] = of(path, "HEALTHCHECK")
    interpreter, option, code = check.arguments
    assert (interpreter, option) == ("python3", "-c")
    assert "http://127.0.0.1:8000/health" in code
    compile(code, "HEALTHCHECK", "exec")
    assert of(path, "EXPOSE")[0].text == "8000"


@both
def test_both_serve_alike(path):
    for keyword in ("USER", "HEALTHCHECK", "ENTRYPOINT", "CMD", "ENV"):
        assert of(path, keyword)[-1] == of(FILES[0], keyword)[-1]


@both
def test_labels(path):
    labels = {name for instruction in of(path, "LABEL") for name, _ in pairs(instruction)}
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses")} <= labels


def test_the_gpu_image_must_be_named_by_digest():
    [digest] = of(FILES[0], "ARG")
    assert digest.text == "VLLM_DIGEST"  # no default: the build fails without one
    [base] = of(FILES[0], "FROM")
    assert base.text == "vllm/vllm-openai:v0.32.0@${VLLM_DIGEST}"


def test_the_cpu_image_is_of_the_locked_lists():
    commands = " ".join(step.command for step in of(FILES[1], "RUN"))
    for name in re.findall(r"-r /requirements/(\S+)", commands):
        assert (ROOT / "requirements" / name).is_file()
    assert commands.count("--require-hashes") == commands.count(" -r /requirements/") == 2


def locked(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """``{name: (pin with its marker, hashes)}`` of a list in requirements/."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / name).read_text())
    heads = [(re.split(r"==", entry)[0], entry) for entry in entries if "==" in entry]
    version = re.compile(r"==(\S+)")
    return {name: (version.search(entry)[1], frozenset(re.findall(r"sha256:\w+", entry))) for name, entry in heads}


def test_the_server_s_list_is_part_of_the_tested_one():
    tested, served = locked("cpu.txt"), locked("serve.txt")
    assert served.items() <= tested.items()
    assert "pytest" in tested and "pytest" not in served


def test_the_context_has_what_the_steps_need():
    """``.dockerignore`` excludes everything and lets in what a wheel is built of."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert let_in == {"LICENSE", "README.md", "pyproject.toml", "setup.py", "palu_vllm_autoload.pth", "palu_vllm"} | {
        "offline_compress", "requirements"
    }  # fmt: skip
    assert all((ROOT / name).exists() for name in let_in)
