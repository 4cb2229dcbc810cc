"""What the GPU tests do around the kernels, tried without a GPU, in Triton's interpreter."""

import pytest
import torch

from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.reference import ReferenceAttention
from tests.gpu.test_kernels_on_gpu import run_on
from tests.palu_vllm.kernels.paged_batches import random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise
from tests.support.shapes import LAYERS, PACKED_LAYERS


@pytest.mark.parametrize(
    "layer", [LAYERS["two_groups_bias_head_dim_80"], PACKED_LAYERS["8_bits"]], ids=["bias", "packed"]
)
def test_moving_a_problem_keeps_it(layer):
    problem = random_problem(layer, [(1, 20), (0, 3), (1, 7)], dtype=torch.float16)
    actual = run_on(problem, "cpu", TritonAttention)
    assert_as_precise(actual, run_on(problem, "cpu", ReferenceAttention), problem)
