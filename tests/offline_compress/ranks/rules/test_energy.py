"""Ranks by discarded energy: exact, within the budget, and read by the whole command."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_compress import compress
from offline_compress.options import CompressOptions
from offline_compress.rank_steps import budget
from offline_compress.ranks.rules.energy import ranks_by_energy
from offline_compress.run.errors import CompressionError
from offline_compress.searches import SEARCHES

QUICK = {"calib_samples": 6, "calib_seqlen": 48, "rank_ratio": 0.5}


def energies_of(spectra: list[list[float]]) -> list[torch.Tensor]:
    """Discarded energies of matrices with these squared singular values, in any order."""
    found = []
    for spectrum in spectra:
        kept = torch.tensor(sorted(spectrum, reverse=True), dtype=torch.float64)
        found.append(torch.cat([kept.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)]))
    return found


def total(energies: list[torch.Tensor], ranks: tuple[int, ...]) -> float:
    return sum(energy[rank].item() for energy, rank in zip(energies, ranks, strict=True))


SPECTRA = st.lists(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), min_size=2, max_size=4)


@settings(max_examples=60)
@given(SPECTRA, st.floats(0.25, 1))
def test_no_other_ranks_of_the_same_sum_discard_less(spectra, ratio):
    wide = []
    for energy in energies_of(spectra):  # the same curve, every number as many as a tile
        steps = torch.repeat_interleave(energy.diff() / 16, 16)
        wide.append(torch.cat([energy[:1], energy[:1] + steps.cumsum(0)]))
    ranks = ranks_by_energy(wide, [64] * len(wide), ratio)
    units = budget([64] * len(spectra), ratio)
    assert sum(ranks) == 16 * units
    every = (c for c in itertools.product((16, 32, 48, 64), repeat=len(spectra)) if sum(c) == 16 * units)
    assert total(wide, ranks) == pytest.approx(min(total(wide, other) for other in every), rel=1e-6, abs=1e-6)


@settings(max_examples=60)
@given(SPECTRA, st.floats(0.3, 1))
def test_ranks_that_cost_more_must_save_more(spectra, ratio):
    """The first matrix has two groups of half the full rank: no other ranks within the budget are better by more than
    the tile that a greedy choice may miss at the end.
    """
    fulls = [32, *[64] * (len(spectra) - 1)]
    energies = [
        torch.linspace(1, 0, full + 1).double() ** 2 * (1 + sum(s)) for full, s in zip(fulls, spectra, strict=True)
    ]
    ranks = ranks_by_energy(energies, fulls, ratio)
    cost = [2, *[1] * (len(spectra) - 1)]
    total_kept = sum(rank * c for rank, c in zip(ranks, cost, strict=True))
    allowed = 16 * budget(fulls, ratio)
    assert allowed - 16 <= total_kept <= allowed
    choices = itertools.product((16, 32), *[(16, 32, 48, 64)] * (len(spectra) - 1))
    within = [c for c in choices if sum(rank * each for rank, each in zip(c, cost, strict=True)) <= total_kept - 32]
    assert all(total(energies, ranks) <= total(energies, other) + 1e-9 for other in within)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("sizes", [(2, 4), (4, 2)])
def test_every_search_keeps_the_bytes_of_the_ratio_with_groups_apart(tmp_path, text, dense, search, sizes):
    options = {"objective": "weighted", "search": search, "group_size_k": sizes[0], "group_size_v": sizes[1]}
    report = compress(dense("llama"), tmp_path / "out", calib_data=text, **options, **QUICK)
    assert 2 * report["bytes_per_token"] == report["dense_bytes_per_token"]
    assert report["rank_ratio_realised"] == report["rank_ratio_nominal"] == 0.5
    groups = [4 // size for size in sizes]
    assert report["bytes_per_token"] == 4 * (groups[0] * sum(report["rank_k"]) + groups[1] * sum(report["rank_v"]))
    assert report["rebuild_work_per_token"] == 4 * 16 * sum(rank for rank in report["rank_k"] if rank < 16 * sizes[0])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{sizes[0]} KV heads in K, {sizes[1]} in V" in card


def test_energy_that_nobody_has_gets_no_ranks():
    flat = [torch.zeros(65, dtype=torch.float64), torch.linspace(1, 0, 65).double()]
    assert ranks_by_energy(flat, [64] * 2, 0.5) == [16, 48]


@pytest.mark.parametrize(
    ("objective", "search"),
    [
        ("svd", "energy"),
        ("svd", "sensitivity"),
        ("whiten", "energy"),
        ("weighted", "energy"),
        ("weighted", "sensitivity"),
    ],
)
def test_the_budget_is_exact_and_the_same_inputs_give_the_same_bytes(tmp_path, text, dense, objective, search):
    options = {"objective": objective, "search": search, "calib_data": text, **QUICK}
    reports = [compress(dense("llama"), tmp_path / name, **options) for name in ("a", "b")]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1] and reports[0]["rank_search"] == reports[1]["rank_search"]
    assert sum(reports[0]["rank_k"] + reports[0]["rank_v"]) == 4 * 32
    found = reports[0]["rank_search"]
    assert all(len(values) == 2 and min(values) >= 0 for values in found.values())
    if search == "energy":
        assert set(found["sensitivity_k"] + found["sensitivity_v"]) == {1.0}


def test_weights_alone_need_no_data(tmp_path, dense):
    report = compress(dense("llama"), tmp_path / "out", objective="svd", search="energy", rank_ratio=0.5)
    assert report["calibration"] == "none" and sum(report["rank_k"] + report["rank_v"]) == 4 * 32


def test_a_key_cost_takes_ranks_from_keys_and_nothing_from_the_bytes(tmp_path, text, dense):
    options = {"calib_data": text, "objective": "whiten", "search": "energy", **QUICK}
    reports = [compress(dense("llama"), tmp_path / str(c), k_cost=c, **options) for c in (0.0, 4.0, 1e6)]
    assert len({report["bytes_per_token"] for report in reports}) == 1
    work = [report["rebuild_work_per_token"] for report in reports]
    assert work == sorted(work, reverse=True) and work[-1] < work[0]
    assert [report["k_cost"] for report in reports] == [0.0, 4.0, 1e6]
    assert reports[-1]["rank_k"] == [16, 16]


def test_rebuild_work_is_the_size_of_the_up_projections(tmp_path, dense):
    report = compress(dense("llama"), tmp_path / "out", objective="svd", search="uniform", rank_ratio=0.5)
    assert report["rebuild_work_per_token"] == 2 * 4 * 16 * 32  # layers, heads, head_dim, rank
    whole = compress(dense("llama"), tmp_path / "whole", objective="svd", rank_ratio=1)
    assert whole["rebuild_work_per_token"] == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"k_cost": -1.0}, "negative"),
    ({"k_cost": float("nan")}, "not finite"),
    ({"k_cost": 1.0, "search": "uniform"}, "energy and sensitivity only"),
    ({"k_cost": 1.0, "target_compression": 4}, "energy and sensitivity only"),
])  # fmt: skip
def test_costs_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(CompressionError, match=message):
        CompressOptions("M", tmp_path, **options)
