"""The rules about files hold."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = [ROOT / name for name in subprocess.check_output(["git", "ls-files"], text=True, cwd=ROOT).splitlines()]
SOURCES = [path for path in TRACKED if path.suffix == ".py" and path.exists()]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            length = node.end_lineno - node.lineno + 1
            assert length <= (120 if kernel else 50), f"{node.name} has {length} lines"


def test_no_machine_is_named():
    """Neither absolute paths of a machine nor the hosts of package indexes."""
    machine = re.compile(
        r"/(?:home|root|Users)/\w|/work/(?:main|shared)|https?://(?:pypi|files\.pythonhosted|download\.pytorch)"
    )
    texts = [
        path for path in TRACKED if path.exists() and path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".sh", "")
    ]
    assert not [name_of(path) for path in texts if machine.search(path.read_text(encoding="utf-8", errors="ignore"))]
