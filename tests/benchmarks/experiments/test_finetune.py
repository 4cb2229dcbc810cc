"""The arms of the fine-tuning benchmark are commands, and its table says what its rows say."""

import pytest

from benchmarks.common.shipped import CALIBRATION, HELD_OUT
from benchmarks.experiments.finetune import ARMS, table
from offline_compress.commands.compress import parse_options


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_command(name):
    options = parse_options(["M", "OUT", "--calib-data", "F", *ARMS[name]])
    assert (f"{options.objective}, {options.search}, {options.rank_ratio:.0%}".replace("%", " %") in name) == (
        options.rank_ratio < 1
    )


def test_nothing_that_is_judged_is_trained_on():
    """A document is a run of lines; no line of the held-out text is among those trained on."""
    train, held_out = (set(path.read_text(encoding="utf-8").split("\n")) for path in (CALIBRATION, HELD_OUT))
    assert train and held_out and not {part for part in train & held_out if part.strip()}


def test_the_table():
    row = {"arm": "an arm", "before": {"perplexity": 29.349, "kl": 0.1}, "after": {"perplexity": 28.0, "kl": 0.0856},
           "training": {"steps": 150, "seconds": 200.4}}  # fmt: skip
    lines = table([row]).splitlines()
    assert "| an arm | 29.35 (0.1000) | 28.00 (0.0856) | 150 | 200 |" in lines
