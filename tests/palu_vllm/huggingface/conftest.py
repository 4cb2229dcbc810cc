"""Tiny checkpoints in every family, and one compressed with either value path."""

from pathlib import Path

import pytest
import torch

import palu_vllm  # noqa: F401  the auto classes learn of the palu types
from tests.palu_vllm.huggingface.oracle import CLASSES, RANKS
from tests.support.plain_svd import build_palu
from tests.support.tiny_models import SMALL, build_small


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
        # transformers' default window of a Mistral is longer than its context, and changes the class of its cache
        build_small(directory / family, family, **({"sliding_window": None} if family == "mistral" else {}))
    return directory


@pytest.fixture(scope="package")
def fused(base) -> Path:
    return build_palu(base / "qwen2", base / "qwen2-fused", **RANKS)


@pytest.fixture(scope="package")
def factored(base) -> Path:
    return build_palu(base / "qwen2", base / "qwen2-factored", **RANKS, value_path="factored")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, SMALL["vocab_size"], (2, 23), generator=torch.Generator().manual_seed(1))
