"""A recorded prompt leaves behind what the model leaves behind."""

import pytest
import torch

from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.harness.prompts import Prompt, compressed
from tests.benchmarks.methods.cases import CASES

TOKENS, BATCH, NEW = 50, 2, 3


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (BATCH, TOKENS + NEW), generator=torch.Generator().manual_seed(11))


@pytest.fixture(scope="module")
def prompts(dense_model, rows):
    return [Prompt(dense_model, row[:TOKENS], torch.float16) for row in rows]


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_prompt_goes_on_as_one_that_the_model_has_just_read(case, dense_model, model, layers, prompts, rows):
    method = CASES[case].calibrated(dense_model, rows)
    read = MethodCache(method, layers)
    model(rows[:, :TOKENS], past_key_values=read)
    filled = compressed(method, prompts, layers, model)
    assert [filled.request_nbytes(i) for i in range(BATCH)] == [read.request_nbytes(i) for i in range(BATCH)]
    for step in rows[:, TOKENS:].split(1, 1):
        logits = [model(step, past_key_values=cache).logits for cache in (read, filled)]
        torch.testing.assert_close(*logits)
    assert filled.get_seq_length() == TOKENS + NEW
