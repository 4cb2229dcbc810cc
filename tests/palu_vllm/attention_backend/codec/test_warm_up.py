"""A start compiles each kind of kernel once, by launches that leave the cache alone."""

import pytest
import torch
from vllm.model_executor.warmup.jit_warmup import JitWarmupRegistry

from palu_vllm.attention_backend.codec import warm_up
from tests.integration.codec.families.test_families import options
from tests.support.codecs.models import write_codec
from tests.support.serving import engine

pytestmark = pytest.mark.serving


@pytest.fixture
def launched(monkeypatch):
    """What is launched, which goes on."""
    found, launch = [], warm_up.launch
    monkeypatch.setattr(warm_up, "launch", lambda of: (found.append(of), launch(of)))
    return found


@pytest.mark.parametrize(("kernels", "times"), [("triton", 1), ("torch", 0)])
def test_layers_that_are_alike_share_a_launch(dense, tmp_path, monkeypatch, launched, kernels, times):
    """In Triton's interpreter; other paths have nothing to compile. A GPU's runner collects while it loads a model, a
    CPU's does not, so the test does.
    """
    monkeypatch.setenv("PALU_KERNELS", kernels)
    codec = write_codec(tmp_path / "codec", dense())
    registry = JitWarmupRegistry(None)
    with registry.activate(), engine(dense(), **options(codec)) as llm:
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        before = [cache.clone() for cache in runner.kv_caches]
        assert len(registry) == len(before) == 2
        registry.warmup()
        assert len(launched) == times
        assert all(torch.equal(one, other) for one, other in zip(before, runner.kv_caches, strict=True))
