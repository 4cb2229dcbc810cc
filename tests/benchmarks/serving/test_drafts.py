"""Acceptance over a compressed cache: the drafter that is cut, and the whole measurement on a tiny model."""

import argparse

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.serving.drafts import cut, measure
from tests.support.codecs.models import write_codec


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0, 4]), (3, [0, 1, 4])])
def test_a_drafter_lacks_the_layers_before_the_last(dense, tmp_path, layers, kept):
    model = dense(num_hidden_layers=5)
    whole, some = (AutoModelForCausalLM.from_pretrained(path) for path in (model, cut(model, layers, tmp_path)))
    assert len(some.model.layers) == some.config.num_hidden_layers == layers
    for own, number in enumerate(kept):
        for name, tensor in some.model.layers[own].state_dict().items():
            torch.testing.assert_close(tensor, whole.model.layers[number].state_dict()[name], rtol=0, atol=0)


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
