"""What the table claims: absorbing errs less than rounding keys to bfloat16, and counts fewer operations."""

import pytest
import torch

from benchmarks.experiments.absorbed_rope import H200, TILE, errors, in_specification, line, medians, table_of
from benchmarks.kernels.layers import sizes
from palu_vllm.kernels.absorbed import known_frequencies
from palu_vllm.kernels.cpu.absorbed import plan
from palu_vllm.kernels.gpu.decode.plan import columns, plan_absorbed_tiles
from palu_vllm.kernels.gpu.tiling import decode_tiling


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
def test_the_approximation_errs_less_than_rounding_to_bfloat16(theta):
    torch.manual_seed(0)
    shape, table = sizes(8, 4, 128, 4, 64, 64), table_of(theta, 4096 + TILE)
    tiling, frequencies = decode_tiling(shape, 2, H200), known_frequencies(table)
    on_gpu = plan_absorbed_tiles(frequencies, shape, tiling, torch.bfloat16, H200)
    found = errors(shape, table, {"cpu": plan(frequencies, 2, TILE), "triton": in_specification(on_gpu)})
    assert found["triton"] < found["rounded"] / 2
    assert found["cpu"] < 5 * found["rebuilt"]
    assert columns(shape, on_gpu.tiling) < columns(shape, tiling)


def test_medians_take_turns():
    called = []
    first, second = ([lambda name=name: called.append(name)] for name in "ab")
    assert medians(first, second, iter(range(100)).__next__, rounds=3) == [1, 1]
    assert called == ["a", "b"] * 3


def test_a_row_without_absorption_has_no_time():
    found = {
        "theta": 1e4,
        "queries_per_kv": 8,
        "rank": 128,
        "error": {"rebuilt": 1e-6, "rounded": 5e-3, "triton": 1e-3},
        "cpu_plan": None,
        "cpu_operations": 1.0,
        "triton_operations": 0.8,
        "cpu_milliseconds": {"ratio": 1.0},
    }
    assert line(found) == ["1e+04", "8", "128", "1e-06", "5e-03", "-", "1.00", "-", "1e-03", "0.80"]
