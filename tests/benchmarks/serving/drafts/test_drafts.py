"""Acceptance over a compressed cache: the whole measurement on a tiny model."""

import argparse

import pytest

from benchmarks.serving.drafts.__main__ import measure
from tests.support.codecs.models import write_codec


@pytest.mark.serving
@pytest.mark.slow
def test_arms_are_compared_by_acceptance(dense, tmp_path):
    """A drafter of all layers is the model itself."""
    codec = write_codec(tmp_path / "codec", dense(), ((64, 8),), ((64, 8),))
    options = argparse.Namespace(
        arms=f"dense,mine={codec}", model=dense(), calib_data=None, prompts=2, tokens=12, drafts=3, drafter_layers=2,
        distil=0, batch=2, dtype="float32",
    )  # fmt: skip
    plain, coded = measure(options)["rows"]
    assert plain["acceptance"] == plain["times_acceptance"] == 1 and plain["tokens_per_step"] == 4
    assert 0 < coded["acceptance"] <= 1 and coded["times_acceptance"] == coded["acceptance"]
