"""Models and text that several test files compress."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import build_even, write_text


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices are faster on a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text(tmp_path_factory.mktemp("text") / "calibration.txt"))


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``dense(family)``: a model directory shared by all tests, not to be changed."""
    made: dict[str, Path] = {}

    def of(family: str = "llama") -> Path:
        if family not in made:
            made[family] = build_even(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return of


@pytest.fixture
def own_dense(dense: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the Llama model that a test may damage."""
    return Path(shutil.copytree(dense("llama"), tmp_path / "model"))
