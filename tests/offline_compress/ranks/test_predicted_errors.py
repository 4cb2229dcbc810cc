"""Predicted errors: what they are made of, and that choices by them are as good as those of trying everything."""

import pytest
import torch

from offline_compress import compress
from offline_compress.calibration.samples import load_samples
from offline_compress.factors.layer_views import LayerViews
from offline_compress.model.source import open_source
from offline_compress.options import CompressOptions
from offline_compress.plan import make_plan
from offline_compress.ranks.layer_errors import layer_errors
from offline_compress.ranks.predicted_errors import Rounding
from offline_compress.ranks.storage_grid import grids

QUICK = {"calib_samples": 4, "calib_seqlen": 40}


def tables(model, text, tmp_path, exhaustive: bool, **options):
    """Those of the second layer, ``[ranks, tiers]`` of keys and of values, and the grid."""
    options = {"calib_data": text, "whiten_samples": 4, "calib_seqlen": 40, "target_compression": 4.0} | options
    asked = CompressOptions(str(model), tmp_path / "out", exhaustive=exhaustive, **options)
    plan = make_plan(asked, open_source(str(model)))
    tokens = load_samples(text, model, 300, 4, 40, 42).tokens
    views = LayerViews(plan, tokens, 4, tmp_path, False).behind(0)
    next(views)
    return layer_errors(plan, grids(plan), next(views)).tables, grids(plan)


def test_a_cost_is_the_quadratic_form_weighed_by_reads():
    generator = torch.Generator().manual_seed(0)
    lost, root = torch.randn(5, 2, 8, generator=generator), torch.randn(2, 8, 8, generator=generator)
    reads = torch.rand(4, 5, generator=generator)
    metric = root @ root.mT
    expected = 0.0
    for token in range(5):
        for group in range(2):
            heads = reads[2 * group : 2 * group + 2, token].sqrt().repeat_interleave(4)
            error = lost[token, group] * heads
            expected += (error @ metric[group] @ error).item()
    assert Rounding(metric, reads).cost(lost) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "options"), [("llama", {}), ("qwen3", {"objective": "whiten", "search": "uniform"})]
)
def test_predictions_are_near_what_attention_says(family, options, dense, text, tmp_path):
    predicted, grid = tables(dense(family), text, tmp_path, False, **options)
    tried, _ = tables(dense(family), text, tmp_path, True, **options)
    for found, exact, side in zip(predicted, tried, grid, strict=True):
        whole = side.tiers.index(((1.0, 16),))
        torch.testing.assert_close(found[:, whole], exact[:, whole], rtol=1e-6, atol=1e-12)
        both = torch.stack([found.flatten(), exact.flatten()]).clamp_min(1e-9).log()
        assert torch.corrcoef(both)[0, 1] > 0.97
        apart = (found / exact)[exact > exact.max() / 100].log().abs().exp()
        assert apart.median() < 1.3 and apart.quantile(0.9) < 2, (
            "only 2 bits, where nothing is first order, are further"
        )


def test_the_choice_costs_no_more_than_the_exhaustive_one(dense, text, tmp_path):
    """In the error that both are measured by."""
    options = {"target_compression": 5, "calib_data": text, **QUICK}
    predicted = compress(dense("llama"), tmp_path / "predicted", **options)["budget"]["predicted_error"]
    tried = compress(dense("llama"), tmp_path / "tried", exhaustive=True, **options)["budget"]["predicted_error"]
    assert predicted <= 1.05 * tried


@pytest.mark.slow
def test_the_choice_is_as_good_on_the_shipped_model(tmp_path):
    """Divergence within 5 % of the exhaustive choice's."""
    from benchmarks.common.shipped import CALIBRATION, HELD_OUT, MODEL
    from benchmarks.quality.held_out import Judge, load, rows_of_text

    judge = Judge(load(MODEL), rows_of_text(MODEL, HELD_OUT, 1024, 6))
    options = {"target_compression": 5, "calib_data": str(CALIBRATION), "calib_samples": 16}
    found = []
    for exhaustive in (False, True):
        compress(MODEL, tmp_path / str(exhaustive), exhaustive=exhaustive, **options)
        found.append(judge.score_checkpoint(tmp_path / str(exhaustive))["kl"])
    assert found[0] <= 1.05 * found[1]
