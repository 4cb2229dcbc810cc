"""The library is compiled once for a machine, by one process, whole or not at all."""

import platform
from pathlib import Path

import pytest

from palu_vllm.kernels.cpu import compiled


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PALU_CACHE", str(tmp_path / "kept"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "kept"


def pretend(monkeypatch):
    """Compiles nothing but counts."""
    built = []

    def build(command, target):
        built.append(target)
        target.write_bytes(b"")

    monkeypatch.setattr(compiled, "build", build)
    return built


def test_a_second_process_finds_what_the_first_compiled(monkeypatch, folder, capsys):
    built = pretend(monkeypatch)
    first = compiled.compiled()
    assert compiled.compiled() == first and built == [first] and first.parent == folder
    assert "compiling the CPU kernels for this machine, once" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["torch", "processor", "options", "sources"])
def test_another_machine_or_version_compiles_anew(changed, monkeypatch, tmp_path):
    before = compiled.key(["c++", "-O3"])
    if changed == "torch":
        monkeypatch.setattr(compiled.torch, "__version__", "0")
    elif changed == "processor":
        monkeypatch.setattr(compiled, "processor", lambda: "another")
    elif changed == "sources":
        (tmp_path / "other.cpp").write_text("int x;")
        monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    assert compiled.key(["c++", "-O2" if changed == "options" else "-O3"]) != before


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(compiled.UnavailableError, match=r"^no C\+\+ compiler was found \(g\+\+, c\+\+, clang\+\+\)$"):
        compiled.compiled()


def test_a_compiler_that_fails_is_one_sentence_and_leaves_nothing(monkeypatch, folder):
    monkeypatch.setattr(compiled, "options", lambda: ["-no-such-option"])
    with pytest.raises(compiled.UnavailableError, match=r"failed: .*no-such-option"):
        compiled.compiled()
    assert not list(folder.glob("*.so"))


def test_a_folder_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PALU_CACHE", str(tmp_path / "file" / "kept"))
    with pytest.raises(compiled.UnavailableError, match="cannot be written"):
        compiled.compiled()


def test_why_not_is_the_sentence(monkeypatch):
    monkeypatch.setenv("CXX", str(Path("nowhere") / "cc"))
    assert compiled.why_not.__wrapped__() == "no C++ compiler was found (nowhere/cc)"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instructions of x86")
@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ("AVX512", "icelake-server"),
        pytest.param("AVX2", "x86-64-v3", marks=pytest.mark.slow),
        pytest.param("DEFAULT", "x86-64", marks=pytest.mark.slow),
    ],
)
def test_it_compiles_for_every_machine(monkeypatch, tmp_path, capability, architecture):
    """Whichever this one is: with AVX-512 it did not, and nobody who had AVX2 saw it."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    asked = [part for part in compiled.options() if part != "-march=native"]
    compiled.build([compiled.compiler(), *asked, "-O0", f"-march={architecture}"], tmp_path / "library.so")
    assert (tmp_path / "library.so").stat().st_size > 0
