"""The ablation's arms are options that the compressor has, and its table says what its rows say."""

import json

import pytest

from benchmarks.quality.ablation import ARMS, PAPER, WEIGHTED, known_rows
from benchmarks.quality.ablation_plot import plot, table, taken_away
from offline_compress.commands.compress import parse_options
from offline_compress.model.source import open_source
from offline_compress.options import CompressOptions
from offline_compress.plan import make_plan


def rows() -> list[dict]:
    """Two ratios, three arms each."""
    perplexities = {PAPER: (30.0, 22.0), WEIGHTED: (23.0, 21.0), ARMS[0]: (300.0, 60.0)}
    return [
        {"ratio": ratio, "arm": arm.title(), "paper": arm == PAPER, "weighted": arm == WEIGHTED, "kl": 0.5,
         "perplexity": found[column], "bytes_per_token": int(6144 * ratio), "rebuild_work_per_token": 1000 + column}
        for column, ratio in enumerate((0.125, 0.25)) for arm, found in perplexities.items()
    ]  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.title())
def test_every_arm_is_a_command(arm):
    options = parse_options(["M", "OUT", "--calib-data", "F", *arm.flags()])
    assert (options.objective, options.search, options.group_size) == (arm.objective, arm.search, arm.group_size)
    assert options.group_size_k is None and options.group_size_v == arm.group_size_v
    assert (options.refit, options.reorder_heads, options.k_cost) == (arm.refit, arm.reorder, arm.k_cost)


def test_titles_tell_arms_apart():
    assert len({arm.title() for arm in ARMS}) == len(ARMS)
    assert PAPER in ARMS and WEIGHTED in ARMS


def test_rows_are_kept_only_where_they_were_made_with_the_same_text(tmp_path):
    path, facts = tmp_path / "ablation.json", {"context": 1024, "rows_of_text": 12}
    assert known_rows(path, facts) == {}
    path.write_text(json.dumps({"rows": rows(), **facts}))
    assert known_rows(path, facts) == {(row["ratio"], row["arm"]): row for row in rows()}
    assert known_rows(path, facts | {"rows_of_text": 16}) == {}


def test_the_row_called_the_default_is_what_the_command_does(tmp_path):
    from benchmarks.common.shipped import MODEL

    options = CompressOptions(str(MODEL), tmp_path, calib_data="F")
    assert options.objective == WEIGHTED.objective
    plan = make_plan(options, open_source(str(MODEL)))
    assert options.search == WEIGHTED.search
    assert plan.groupings.key.size == plan.groupings.value.size == WEIGHTED.group_size
    assert plan.refits == WEIGHTED.refit and plan.reorders == WEIGHTED.reorder and options.k_cost == WEIGHTED.k_cost


def test_the_table_has_every_number_and_the_share_taken_away():
    text = table(rows(), 20.0)
    assert f"| {PAPER.title()} (the paper) | 30.00 (+50.0 %) | 0.5000 | 768 | 22.00 (+10.0 %)" in text
    assert taken_away(rows(), 0.125, 20.0) == pytest.approx(0.7)
    assert "takes away 70% at 12.5%, 50% at 25.0%" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


@pytest.mark.parametrize("ratios", [(0.125,), (0.125, 0.25)])
def test_a_plot_is_drawn(tmp_path, ratios):
    plot([row for row in rows() if row["ratio"] in ratios], 20.0, tmp_path / "images" / "ablation.png")
    assert (tmp_path / "images" / "ablation.png").read_bytes().startswith(b"\x89PNG")
