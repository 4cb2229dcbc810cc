"""Drafters: the layers that are cut, and what they learn."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.serving.drafts import distil
from benchmarks.serving.drafts.distil import batches, cut, first_layers


def test_a_drafter_is_the_first_layers(dense, tmp_path):
    whole, first = (AutoModelForCausalLM.from_pretrained(path) for path in (dense(), cut(dense(), 1, tmp_path / "cut")))
    assert len(first.model.layers) == first.config.num_hidden_layers == 1
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=0, atol=0)


def test_distilled_layers_predict_the_model_better(dense):
    """Nothing but the drafter changes."""
    teacher = AutoModelForCausalLM.from_pretrained(dense(), dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    ids = torch.randint(teacher.config.vocab_size, (600,), generator=torch.Generator().manual_seed(1))
    losses = distil.distil(first_layers(dense(), 1).float(), teacher, ids, 30)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_rows_are_of_the_text():
    ids = torch.arange(1000)
    for rows in batches(ids, 3):
        assert rows.shape == (distil.ROWS, distil.ROW) and (rows.diff() == 1).all()
    with pytest.raises(ValueError, match="got a text of 256 tokens"):
        next(batches(ids[:256], 1))
