"""The page about the structure is true, and the rules about files hold."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRACKED = [ROOT / name for name in subprocess.check_output(["git", "ls-files"], text=True, cwd=ROOT).splitlines()]
SOURCES = [path for path in TRACKED if path.suffix == ".py" and path.exists()]
PACKAGES = ("palu_vllm", "offline_compress", "benchmarks", "demo")
PAGE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith(PACKAGES)], ids=name_of)
def test_every_file_is_on_the_page(path):
    wanted = f"{path.parent.name}/" if path.stem in ("__init__", "__main__") else path.name
    assert wanted in PAGE


def test_every_file_on_the_page_exists():
    existing = {path.name for path in SOURCES}
    assert set(re.findall(r"[\w]+\.py", PAGE)) <= existing


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            length = node.end_lineno - node.lineno + 1
            assert length <= (140 if kernel else 60), f"{node.name} has {length} lines"


def test_no_machine_is_named():
    """Neither absolute paths of a machine nor the hosts of package indexes."""
    machine = re.compile(
        r"/(?:home|root|Users)/\w|/work/(?:main|shared)|https?://(?:pypi|files\.pythonhosted|download\.pytorch)"
    )
    texts = [
        path for path in TRACKED if path.exists() and path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".sh", "")
    ]
    assert not [name_of(path) for path in texts if machine.search(path.read_text(encoding="utf-8", errors="ignore"))]
