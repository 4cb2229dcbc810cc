"""Views of layers that are looked at twice: the same numbers, and the samples go through the model once."""

from pathlib import Path

import pytest
import torch

from offline_compress import compress
from offline_compress.calibration.activations import INPUTS
from offline_compress.calibration.samples import load_samples
from offline_compress.factors.layer_views import VIEWS, LayerView, LayerViews
from offline_compress.model.access import LayerRunner
from offline_compress.model.source import open_source
from offline_compress.options import CompressOptions
from offline_compress.plan import make_plan

SAMPLES = 3


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """One entry for every sample that goes through a layer."""
    found, run = [], LayerRunner.run

    def counted(self, module, hidden):
        found.append(1)
        return run(self, module, hidden)

    monkeypatch.setattr(LayerRunner, "run", counted)
    return found


def views_of(model: Path, text: str, scratch: Path, twice: bool, **options: object) -> LayerViews:
    plan = make_plan(CompressOptions(str(model), scratch / "out", calib_data=text, **options), open_source(str(model)))
    tokens = load_samples(text, model, 300, SAMPLES, 40, 0).tokens
    return LayerViews(plan, tokens, plan.kept_samples, scratch, twice)


def numbers(view: LayerView) -> list[torch.Tensor]:
    of_sides = [part for side in view.objectives for part in side if isinstance(part, torch.Tensor)]
    return of_sides + [part for sample in view.probes.samples for part in (sample.inputs, sample.energy)]


@pytest.mark.parametrize("options", [{}, {"objective": "whiten"}, {"group_size": 2, "reorder_heads": True}])
def test_they_are_the_same_when_asked_for_again(tmp_path, text, dense, runs, options):
    views = views_of(dense("qwen2"), text, tmp_path, twice=True, **options)
    first = list(views.behind(0))
    assert len(runs) == 2 * SAMPLES and not list(tmp_path.glob(f"{INPUTS}*"))
    again = list(views.behind(0))
    assert len(runs) == 2 * SAMPLES and len(first) == len(again) == 2
    for one, other in zip(first, again, strict=True):
        assert (one.layer, one.order) == (other.layer, other.order)
        pairs = list(zip(numbers(one), numbers(other), strict=True))
        assert pairs and all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_a_run_that_goes_on_makes_only_those_that_are_missing(tmp_path, text, dense, runs):
    views = views_of(dense("llama"), text, tmp_path, twice=True)
    kept = numbers(next(views.behind(0)))
    assert [path.name for path in tmp_path.glob(f"{VIEWS}*")] == [f"{VIEWS}00000"]
    again = list(views.behind(0))
    assert len(runs) == 2 * SAMPLES, "each layer once"
    assert all(torch.equal(a, b) for a, b in zip(kept, numbers(again[0]), strict=True))


def test_views_of_a_single_use_are_not_kept(tmp_path, text, dense):
    assert len(list(views_of(dense("llama"), text, tmp_path, twice=False).behind(0))) == 2
    assert not list(tmp_path.glob(f"{VIEWS}*"))


@pytest.mark.parametrize("options", [{}, {"search": "uniform"}, {"target_compression": 5, "latent_bits": 4}])
def test_samples_go_through_every_layer_once(tmp_path, text, dense, runs, options):
    options = options | {"calib_data": text, "calib_samples": SAMPLES, "calib_seqlen": 40}
    compress(dense("llama"), tmp_path / "out", **options)
    assert len(runs) == 2 * SAMPLES
