"""The rules of ``benchmarks.structure``, each on a small tree that keeps it and on one that breaks it."""

from pathlib import Path

import pytest

from benchmarks.structure.__main__ import main
from benchmarks.structure.prose import sentences


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def complaints(root: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The rules that are broken; checks that the exit code says the same."""
    code = main(["--root", str(root)])
    printed = capsys.readouterr().out.rstrip().splitlines()
    found = [line for line in printed if line.endswith(".")]
    assert printed[-1] == f"{len(found)} rules broken" and code == bool(found)
    return found


def function(lines: int, decorator: str = "") -> str:
    return decorator + "def f():\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("kept", "broken", "said"),
    [
        (
            {f"palu_vllm/{i}.py": "" for i in range(15)} | {"palu_vllm/__init__.py": ""},
            {f"palu_vllm/{i}.py": "" for i in range(16)},
            "palu_vllm: 16 files of a folder, at most 15.",
        ),
        (
            {f"palu_vllm/{i}.cpp": "" for i in range(15)},
            {f"palu_vllm/{i}.{kind}": "" for i in range(8) for kind in ("cpp", "hpp")},
            "palu_vllm: 16 files of a folder, at most 15.",
        ),
        ({"demo/a.py": "\n" * 300}, {"demo/a.py": "\n" * 301}, "demo/a.py: 301 lines of a file, at most 300."),
        (
            {"demo/a.py": function(50)},
            {"demo/a.py": "\n" + function(51)},
            "demo/a.py:2 f: 51 lines of a function, at most 50.",
        ),
        (
            {"palu_vllm/a.py": function(120, "@triton.jit(debug=True)\n")},
            {"palu_vllm/a.py": function(121, "@triton.jit\n")},
            "palu_vllm/a.py:2 f: 121 lines of a function, at most 120.",
        ),
        (
            {"tests/a.py": f"f({'1, ' * 12}key=1)\n"},
            {"tests/a.py": f"f({'1, ' * 13}key=1)\n"},
            "tests/a.py:1: 13 positional arguments of a call, at most 12.",
        ),
    ],
)
def test_sizes_have_limits(tmp_path, capsys, kept, broken, said):
    assert complaints(write(tmp_path / "kept", kept), capsys) == []
    assert complaints(write(tmp_path / "broken", broken), capsys) == [said]


@pytest.mark.parametrize(
    "second",
    ["import demo.a\n", "from demo import a\n", "from demo.a import f\n", "class A:\n    from demo import a\n"],
)
def test_circle_is_broken_rule(tmp_path, capsys, second):
    write(tmp_path, {"demo/__init__.py": "", "demo/a.py": "from demo.b import c\n", "demo/b.py": second})
    assert complaints(tmp_path, capsys) in (
        ["Import circle: demo.a -> demo.b -> demo.a."],
        ["Import circle: demo.b -> demo.a -> demo.b."],
    )


@pytest.mark.parametrize(
    "second",
    [
        "def f():\n    import demo.a\n",
        "if TYPE_CHECKING:\n    from demo import a\n",
        "import a\n",
        "from demo import c\n",
    ],
)
def test_late_imports_and_those_for_types_make_no_circle(tmp_path, capsys, second):
    write(tmp_path, {"demo/__init__.py": "", "demo/a.py": "from demo.b import c\n", "demo/b.py": second})
    assert complaints(tmp_path, capsys) == []


def test_every_circle_is_said(tmp_path, capsys):
    pairs = {f"demo/{a}.py": f"import demo.{b}\n" for a, b in ("ab", "ba", "cd", "de", "ec")}
    found = complaints(write(tmp_path, pairs), capsys)
    assert sorted(circle.count("->") for circle in found) == [2, 3]


def test_report_has_lines_parameters_and_words(tmp_path, capsys):
    code = {"demo/a.py": "def f(a, /, b, *, c):\n    pass\n", "tests/b.py": "\n" * 7}
    pages = {"README.md": "One two three. Four five\nsix seven.\n", "docs/guide/a.md": "- One two.\n- Three.\n"}
    main(["--root", str(write(tmp_path, code | pages))])
    printed = capsys.readouterr().out
    assert "2 demo\n" in printed and "7 tests\n" in printed
    assert "3  demo/a.py:1 f\n" in printed
    assert "README: median 3.5 words, 0% above 35, 2 sentences\ndocs: median 1.5 words" in printed


def test_sentences_leave_out_what_is_not_prose():
    page = "# Head. Line\n\nSee [the page](a.b. C), v0.3 of it. `x` is\nnext!\n\n| a. B |\n\n```\nCode. More\n```\n"
    assert sentences(page) == ["See the page, v0.3 of it.", "`x` is next!"]
