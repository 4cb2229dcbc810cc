"""What all tests share: the environment of vLLM and Triton, seeds, and tiny checkpoints."""

import gc
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported anywhere
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # LLM(...) in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# tiny models gain nothing from a second thread, and threads bound to cores starve on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from collections.abc import Callable, Generator  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests.support.plain_svd import build_palu  # noqa: E402
from tests.support.processes.cpu_times import (  # noqa: E402, F401  # hooks
    pytest_runtest_logstart,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)
from tests.support.processes.stalls import ended_when_stalled  # noqa: E402
from tests.support.speed import cases  # noqa: E402
from tests.support.tiny_models import build_dense  # noqa: E402

Checkpoints = Callable[..., Path]
hypothesis.settings.register_profile("palu", deadline=None)  # how long an example takes is up to the machine
hypothesis.settings.load_profile("palu")


def pytest_configure(config: pytest.Config) -> None:
    cases.fast_only = "not slow" in config.option.markexpr


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that take minutes first, so that no core is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("serving") is None and "tests/project/" not in item.nodeid)


def pytest_collection_finish() -> None:
    """What is imported stays to the end; collections of garbage need not look through it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries tell of what is left when the process ends."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Ends a test, its fixtures included, that makes no progress."""
    with ended_when_stalled():
        return (yield)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """``dense(family, **overrides)``: a dense checkpoint of ``tiny_models``, written once per session."""
    written: dict[str, Path] = {}

    def get(family: str = "llama", **overrides: object) -> Path:
        key = repr((family, sorted(overrides.items())))
        if key not in written:
            written[key] = build_dense(tmp_path_factory.mktemp(family), family, **overrides)
        return written[key]

    return get


@pytest.fixture(scope="session")
def palu(dense: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """``palu(family, rank_k, rank_v, value_path=, group_size=, **overrides)``: likewise, by plain SVD."""
    written: dict[str, Path] = {}

    def get(
        family: str = "llama",
        rank_k: object = 32,
        rank_v: object = 32,
        value_path: str = "fused",
        group_size: int | tuple[int, int] = 2,
        source_layers: tuple[int, ...] | None = None,
        **overrides: object,
    ) -> Path:
        key = repr((family, rank_k, rank_v, value_path, group_size, source_layers, sorted(overrides.items())))
        if key not in written:
            directory = tmp_path_factory.mktemp(f"palu-{family}") / "model"
            source = dense(family, **overrides)
            written[key] = build_palu(source, directory, rank_k, rank_v, group_size, value_path, source_layers)
        return written[key]

    return get
