"""What a worker does before it loads weights anew; a whole server: ``tests/integration/codec/test_reload.py``."""

from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from palu_vllm.attention_backend.codec import weights
from tests.support.codecs.models import write_codec


@pytest.fixture
def reloaded(dense, tmp_path):
    """``reloaded(runner, ...)``: what a worker with that class of runners hands on, in a list."""
    settings = {"palu": {"codec": str(write_codec(tmp_path / "codec", dense()))}}
    config = EngineArgs(str(dense()), dtype="float32", additional_config=settings).create_engine_config()

    def load(runner, *args, **kwargs) -> list:
        handed, bound = [], runner.reload_weights.__get__(SimpleNamespace())
        worker = SimpleNamespace(vllm_config=config, model_runner=SimpleNamespace(reload_weights=bound))
        weights.with_check(lambda worker, *args, **kwargs: handed.append((args, kwargs)))(worker, *args, **kwargs)
        return handed

    return load


both = pytest.mark.parametrize("runner", [RunnerV1, RunnerV2])


@both
def test_a_directory_is_looked_into(dense, reloaded, runner):
    """By place or by name, as either runner takes it."""
    assert reloaded(runner, None, str(dense())) == [((None, str(dense())), {})]
    assert reloaded(runner) == [((), {})], "the weights that it began with"
    with pytest.raises(ValueError, match="K and V projections are not those of"):
        reloaded(runner, weights_path=str(dense(seed=1)))


@both
def test_weights_from_memory_are_warned_of(reloaded, runner, monkeypatch):
    said = []
    monkeypatch.setattr(weights.logger, "warning", said.append)
    iterator = iter([])
    assert reloaded(runner, iterator) == [((iterator,), {})]
    assert len(said) == 1 and "watch its drift" in said[0]
