"""Knobs that meet a budget."""

import pytest
import torch

from benchmarks.methods.compare.bench import learner
from benchmarks.methods.compare.search import Prompt, closest, fitting, largest_fitting
from benchmarks.methods.families import FAMILIES, Family
from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.harness.interface import Layer
from benchmarks.methods.harness.measure import Judge
from benchmarks.methods.kept.snapkv import SnapKV

TOKENS = 160


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (2, TOKENS), generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def prompt(dense_model, rows):
    return Prompt(dense_model, rows[0], torch.float16)


@torch.inference_mode()
def test_bytes_of_a_prompt_are_those_of_its_cache(model, prompt, rows):
    method = SnapKV(max_capacity_prompts=40)
    cache = MethodCache(method, prompt.layers)
    model(rows[:1], past_key_values=cache)
    assert prompt.nbytes(method) == cache.nbytes() == 40 * 2 * 3 * 2 * 16 * 2


@pytest.mark.parametrize("name", FAMILIES)
def test_what_fits_is_within_the_budget_and_the_largest_of_its_family(name, dense_model, prompt, rows):
    learn = learner(dense_model, rows)
    families = list(FAMILIES[name](prompt.layers[0], TOKENS))
    assert all(isinstance(family, Family) for family in families) and isinstance(prompt.layers[0], Layer)
    found = fitting(families, learn, prompt, 1.4)
    assert found or name == "kvsharer"  # a random model's layers may not be shared at its threshold
    assert all(prompt.nbytes(method) <= prompt.dense_nbytes() / 1.4 for method in found)
    one = families[0]
    best = largest_fitting(one, learn, lambda each: prompt.nbytes(each) <= prompt.dense_nbytes() / 1.4)
    sizes = []
    for size in (one.low, one.high):
        try:
            sizes.append(prompt.nbytes(learn(one.make(size))))
        except ValueError:
            assert name == "kvsharer"
    assert sizes == sorted(sizes)
    if best is not None and sizes[-1] > prompt.dense_nbytes() / 1.4:
        assert prompt.nbytes(best) > 0.7 * prompt.dense_nbytes() / 1.4


def test_the_closest_is_chosen(dense_model, rows):
    judge = Judge(dense_model, rows, TOKENS - 8)
    methods = [SnapKV(max_capacity_prompts=size) for size in (16, 140, 60)]
    assert closest(methods, judge, dense_model, torch.float16) == methods[1]
    assert closest(methods[:1], judge, dense_model, torch.float16) == methods[0]
