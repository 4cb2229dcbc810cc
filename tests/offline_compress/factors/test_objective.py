"""Objectives on a trained model: each loses least of what it claims to keep, and ``weighted`` least of attention."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from benchmarks.common.shipped import CALIBRATION, MODEL
from offline_compress.calibration.layer_probes import LayerProbes
from offline_compress.calibration.samples import load_samples
from offline_compress.calibration.statistics import layer_statistics
from offline_compress.factors.decomposition import Factors
from offline_compress.factors.objective import Objective, layer_grams, layer_objectives
from offline_compress.factors.refit import Refit, read_values
from offline_compress.model.access import KEY, VALUE, LayerRunner, projection
from offline_compress.model.source import open_source
from offline_compress.options import CompressOptions
from offline_compress.plan import Plan, make_plan
from palu_vllm.format.kv import KV

LAYER, RANK, NAMES = 1, 32, ("svd", "whiten", "weighted")


def plan_of(objective: str) -> Plan:
    options = CompressOptions(str(MODEL), Path("out"), objective=objective, calib_data=str(CALIBRATION), device="cpu")
    return make_plan(options, open_source(options.model))


@cache
def studied() -> tuple[dict[str, KV[Objective]], LayerProbes, torch.Tensor]:
    """All objectives of one layer of one group, probes of the samples that they come from, and their second moment."""
    plan = plan_of("weighted")
    runner = LayerRunner(plan.source, plan.config, plan.device)
    tokens = load_samples(str(CALIBRATION), MODEL, plan.config.vocab_size, 4, 160, 0).tokens
    with TemporaryDirectory() as scratch:
        passes = layer_statistics(runner, tokens, Path(scratch), keep=4)
        statistics = [next(passes) for _ in range(LAYER + 1)][LAYER]
    probes, moment = LayerProbes(plan.source, runner, LAYER, statistics.samples), statistics.second_moment

    def objectives(plan: Plan) -> KV[Objective]:
        grams = layer_grams(plan, LAYER, moment.clone(), weight_of)
        return layer_objectives(plan, LAYER, grams, probes, weight_of)

    return {name: objectives(plan_of(name)) for name in NAMES}, probes, moment


def weight_of(name: str) -> torch.Tensor:
    return plan_of("svd").source.tensor(projection(LAYER, name)).float()


def factors_of(name: str, objective: str) -> Factors:
    """One group of all heads at ``RANK``."""
    of_layer = studied()[0][objective]
    return (of_layer.key if name == KEY else of_layer.value).factors(weight_of(name), RANK)


def lost(name: str, factors: Factors, objective: Objective) -> float:
    """``tr(A dW H dW^T)``."""
    difference = weight_of(name).double() - factors.up[0].T @ factors.down
    right = difference if objective.grams is None else difference @ studied()[2]
    left = difference if objective.error_metric is None else objective.error_metric[0] @ difference
    return (left * right).sum().item()


def attention_error(name: str, factors: Factors) -> float:
    """What really happens to attention on the samples."""
    total = 0.0
    for probe, inputs in studied()[1]:
        rows = inputs @ (factors.up[0].T @ factors.down).float().T
        heads = rows.unflatten(-1, (len(probe.values), -1)).transpose(0, 1)
        total += probe.key_error(heads) if name == KEY else probe.value_error(heads)
    return total


@pytest.mark.parametrize("name", [KEY, VALUE])
@pytest.mark.parametrize("claimed", NAMES)
def test_each_loses_least_of_what_it_claims_to_keep(name, claimed):
    of_layer = studied()[0][claimed]
    measure = of_layer.key if name == KEY else of_layer.value
    costs = {other: lost(name, factors_of(name, other), measure) for other in NAMES}
    assert costs[claimed] == min(costs.values())
    assert measure.discarded_energy(weight_of(name))[RANK].item() == pytest.approx(costs[claimed], rel=2e-2)


@pytest.mark.parametrize("name", [KEY, VALUE])
def test_attention_changes_least_with_the_weighted_objective(name):
    svd, whiten, weighted = (attention_error(name, factors_of(name, objective)) for objective in NAMES)
    assert weighted < 0.8 * whiten < whiten < svd


def test_fitting_again_helps_values_with_every_objective():
    for objective in NAMES:
        factors = factors_of(VALUE, objective)
        again = Refit(read_values, studied()[1])(factors, weight_of(VALUE))
        assert attention_error(VALUE, again) < attention_error(VALUE, factors)
