"""Tiny checkpoints in every family, and one compressed with either value path."""

from pathlib import Path

import pytest
import torch

import palu_vllm  # noqa: F401  the auto classes learn of the palu types
from tests.palu_vllm.huggingface.oracle import CLASSES, RANKS
from tests.support.palu_checkpoints import SIZES, write_dense, write_palu


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from a second thread and wait for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def base(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("huggingface")
    for family in CLASSES:
        write_dense(family, directory / family)
    return directory


@pytest.fixture(scope="package")
def fused(base) -> Path:
    return write_palu(base / "qwen2", base / "qwen2-fused", **RANKS)


@pytest.fixture(scope="package")
def factored(base) -> Path:
    return write_palu(base / "qwen2", base / "qwen2-factored", **RANKS, value_path="factored")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (2, 23), generator=torch.Generator().manual_seed(1))
