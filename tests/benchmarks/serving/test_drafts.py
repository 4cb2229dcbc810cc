"""Acceptance over a compressed cache: the drafter that is cut, and the whole measurement on a tiny model."""

import argparse

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.serving.drafts import cut, measure
from tests.support.codecs.models import write_codec


def test_a_drafter_is_the_first_layers(dense, tmp_path):
    whole, first = (AutoModelForCausalLM.from_pretrained(path) for path in (dense(), cut(dense(), 1, tmp_path / "cut")))
    assert len(first.model.layers) == first.config.num_hidden_layers == 1
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=0, atol=0)


@pytest.mark.serving
@pytest.mark.slow
def test_arms_are_compared_by_acceptance(dense, tmp_path):
    """A drafter of all layers is the model itself."""
    codec = write_codec(tmp_path / "codec", dense(), ((64, 8),), ((64, 8),))
    options = argparse.Namespace(
        arms=f"dense,mine={codec}", model=dense(), calib_data=None, prompts=2, tokens=12, drafts=3, drafter_layers=2,
        batch=2, dtype="float32",
    )  # fmt: skip
    plain, coded = measure(options)["rows"]
    assert plain["acceptance"] == plain["times_acceptance"] == 1 and plain["tokens_per_step"] == 4
    assert 0 < coded["acceptance"] <= 1 and coded["times_acceptance"] == coded["acceptance"]
