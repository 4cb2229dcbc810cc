"""Ranks that fall step by step: exact, nested, and for losses that add up the ranks of least loss."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_compress.rank_steps import budget, units_and_costs
from offline_compress.ranks.greedy import STEPS_PER_RANK, best_step, greedy_ranks, lower_rank
from offline_compress.ranks.rules.energy import ranks_by_energy
from offline_compress.run.journal import Journal, open_journal
from palu_vllm.format.shape import rank_step

FULLS = st.sampled_from([8, 24, 48, 64, 128, 320, 512])


@dataclass
class AddingModel:
    """Losses of projections add up: those of the numbers of ``spectra[matrix]``, largest first, that are cut off."""

    spectra: list[list[float]]
    ranks: list[int] = field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self.ranks = [len(spectrum) for spectrum in self.spectra]

    def loss(self, matrix: int, rank: int) -> float:
        self.calls += 1
        ranks = [*self.ranks[:matrix], rank, *self.ranks[matrix + 1 :]]
        return sum(sum(spectrum[kept:]) for spectrum, kept in zip(self.spectra, ranks, strict=True))

    def lower(self, matrix: int, rank: int) -> None:
        assert rank < self.ranks[matrix]
        self.ranks[matrix] = rank


def adding_model(fulls: list[int], seed: int) -> AddingModel:
    chooser = torch.Generator().manual_seed(seed)
    return AddingModel([torch.rand(full, generator=chooser).sort(descending=True).values.tolist() for full in fulls])


@pytest.fixture
def notes(tmp_path) -> Journal:
    return open_journal(tmp_path / "state", {})


class Forgetful(Journal):
    """Remembers nothing, for examples that share a directory."""

    def remembered(self, name, compute):
        return compute()


def found(fulls: list[int], ratio: float, seed: int = 0) -> list[int]:
    return greedy_ranks(adding_model(fulls, seed), fulls, ratio, Forgetful(Path()))[0]


@settings(max_examples=50)
@given(FULLS, st.integers(1, 6), st.floats(0.01, 1), st.integers(0, 99))
def test_ranks_are_multiples_within_limits_and_add_up_to_the_budget(full, count, ratio, seed):
    ranks, step = found([full] * count, ratio, seed), rank_step(full)
    assert all(rank % step == 0 and step <= rank <= full for rank in ranks)
    assert sum(ranks) == step * budget([full] * count, ratio)


@settings(max_examples=50)
@given(st.sampled_from([(1, 4), (4, 1), (2, 8), (3, 6)]), st.integers(1, 4), st.floats(0.01, 1), st.integers(0, 99))
def test_groups_apart_share_the_cache_exactly(sizes, layers, ratio, seed):
    fulls = [16 * size for size in sizes] * layers
    ranks = found(fulls, ratio, seed)
    units, costs = units_and_costs(fulls)
    kept = sum(rank * units // full for rank, full in zip(ranks, fulls, strict=True))
    finest = [rank == full for rank, full, cost in zip(ranks, fulls, costs, strict=True) if cost == min(costs)]
    assert kept <= budget(fulls, ratio) < kept + (max(costs) if all(finest) else min(costs))


@settings(max_examples=30)
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5), st.sampled_from([48, 128, 320]), st.integers(0, 99))
def test_fewer_ranks_are_a_part_of_more_ranks(ratios, full, seed):
    ranks = [found([full] * 4, ratio, seed) for ratio in sorted(ratios)]
    for less, more in itertools.pairwise(ranks):
        assert all(a <= b for a, b in zip(less, more, strict=True))


@settings(max_examples=30)
@given(st.floats(0.1, 1), st.integers(0, 99))
def test_losses_that_add_up_and_grow_lead_to_the_least(ratio, seed):
    """Where a step is the smallest, that is what the energy search finds from the other end."""
    model = adding_model([128] * 4, seed)
    energies = [torch.tensor([sum(spectrum[rank:]) for rank in range(129)]).double() for spectrum in model.spectra]
    assert found([128] * 4, ratio, seed) == ranks_by_energy(energies, [128] * 4, ratio)


@settings(max_examples=20)
@given(st.integers(0, 99))
def test_what_is_known_leads_to_the_steps_of_measuring_all(seed):
    """Losses that add up do not shrink."""
    fulls = [128, 64, 256, 128, 128, 64]
    model, ranks, loss = adding_model(fulls, seed), list(fulls), 0.0
    found, steps = greedy_ranks(adding_model(fulls, seed), fulls, 0.3, Forgetful(Path()))
    for step in steps[:-1]:
        exhaustive = best_step(model, ranks, fulls, loss, [None] * len(fulls))
        assert (step["matrix"], step["rank"]) == (exhaustive["matrix"], exhaustive["rank"])
        model.lower(step["matrix"], step["rank"])
        ranks[step["matrix"]], loss = step["rank"], step["loss"]


def test_the_first_step_is_the_least_of_all():
    fulls = [64, 128, 256, 64]
    model = adding_model(fulls, 3)
    per_number = [model.loss(i, lower_rank(full, full)) * full / (full - lower_rank(full, full))
                  for i, full in enumerate(fulls)]  # fmt: skip
    step = best_step(model, fulls, fulls, 0.0, [None] * 4)
    assert step["matrix"] == min(range(4), key=per_number.__getitem__)
    assert (step["rank"], step["loss"]) == (
        lower_rank(f := fulls[step["matrix"]], f),
        model.loss(step["matrix"], step["rank"]),
    )


@pytest.mark.parametrize(("full", "step"), [(16, 16), (64, 16), (256, 32), (512, 64), (24, 8), (320, 32)])
def test_a_step_is_an_eighth_in_whole_steps(full, step):
    assert full - lower_rank(full, full) == (step if full > step else 0)
    assert lower_rank(rank_step(full), full) == rank_step(full)
    assert step == max(rank_step(full), full // STEPS_PER_RANK // rank_step(full) * rank_step(full))


def test_steps_that_are_known_are_not_measured_again(notes):
    fulls, first, again = [128] * 3, adding_model([128] * 3, 1), adding_model([128] * 3, 1)
    expected = greedy_ranks(first, fulls, 0.6, notes)
    last = sorted(notes.directory.glob("step-*.json"))[-1]
    last.unlink()
    assert greedy_ranks(again, fulls, 0.6, notes) == expected
    assert again.calls <= 3 < first.calls and again.ranks == first.ranks


def test_everything_kept_takes_no_step(notes):
    assert greedy_ranks(adding_model([64] * 2, 0), [64] * 2, 1.0, notes) == ([64, 64], [])
