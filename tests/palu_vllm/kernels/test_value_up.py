"""The factored value path: values of every head from the latents that attention has joined, on every path."""

import pytest
import torch

from benchmarks.kernels.layers import SERVED_LAYERS
from palu_vllm.kernels.cpu.attention import TorchAttention
from palu_vllm.kernels.gpu import launch
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.reference import ReferenceAttention
from palu_vllm.kernels.value_up import REDUCED_BYTES, apply_v_up, reduce_multiplies, write_values
from tests.palu_vllm.kernels.paged_batches import PADDING_ROWS, UNTOUCHED, Problem, random_problem
from tests.palu_vllm.kernels.same_precision import ALLOWED, FLOOR, largest_error, same_precision_attention
from tests.support.shapes import LARGE_LAYERS, LAYERS, PACKED_LAYERS
from tests.support.speed.cases import diagonal

NAMED = LAYERS | PACKED_LAYERS | LARGE_LAYERS
NAMES = [
    "per_head_odd_ranks",
    "two_groups_bias_head_dim_80",
    "three_queries_per_kv_head_dim_96",
    "group_of_three_bias_window",
    "4_bits_odd_ranks",
    "two_keys_per_slot_tiers",
    "two_values_per_slot_bias",
    "rank_v_1024_in_one_group",
]
STEPS = {"decode": [(1, 20), (0, 5), (1, 33)], "several_queries": [(3, 20), (1, 9)], "prefill": [(12, 20), (1, 3)]}


def factored(name: str, requests: list[tuple[int, int]], dtype: torch.dtype) -> tuple[Problem, torch.Tensor]:
    """A problem and its ``v_up``."""
    problem = random_problem(NAMED[name], requests, dtype=dtype)
    shape = problem.shape
    v_up = torch.randn(shape.num_groups_v, shape.rank_v, shape.group_size_v * shape.head_dim) / shape.rank_v**0.5
    return problem, v_up.to(dtype)


def attend(implementation: object, problem: Problem, dtype: torch.dtype | None = None) -> torch.Tensor:
    out = torch.full_like(problem.query, UNTOUCHED, dtype=dtype)
    implementation.attend(problem.query, problem.cache, problem.batch, out)
    return out


def assert_values_as_precise(actual: torch.Tensor, problem: Problem, v_up: torch.Tensor) -> None:
    """Beside torch that rounds the latents before their product with ``v_up`` and the values after it."""
    rows = int(problem.batch.query_start_loc[-1])
    assert (actual[rows:] == UNTOUCHED).all(), "rows of padding were written"
    expected = attend(ReferenceAttention(problem.shape, problem.rebuild, v_up), problem, torch.float32)[:rows]
    latents = same_precision_attention(problem)[:rows]
    rounded = apply_v_up(latents.float(), v_up, problem.shape).to(problem.query.dtype)
    limit = ALLOWED * largest_error(rounded, expected) + FLOOR * float(expected.abs().max())
    assert largest_error(actual[:rows], expected) <= limit


@diagonal(
    name={name: name for name in NAMES},
    requests=STEPS,
    reduced={"in_reduce": True, "a_product_of_its_own": False},
)
def test_kernels_are_as_precise_as_torch(name, requests, reduced, monkeypatch):
    problem, v_up = factored(name, requests, torch.float16)
    monkeypatch.setattr(launch, "reduce_multiplies", lambda *sizes: reduced)
    actual = attend(TritonAttention(problem.shape, problem.rebuild, v_up=v_up), problem)
    assert_values_as_precise(actual, problem, v_up)


@diagonal(
    name={name: name for name in ("two_groups_bias_head_dim_80", "4_bits_odd_ranks", "two_values_per_slot_bias")},
    requests=STEPS,
)
def test_the_torch_path_is_as_precise(name, requests):
    problem, v_up = factored(name, requests, torch.float32)
    assert_values_as_precise(attend(TorchAttention(problem.shape, problem.rebuild, v_up), problem), problem, v_up)


def test_each_head_takes_its_own_columns():
    shape = LAYERS["two_groups_bias_head_dim_80"].shape
    latents = torch.randn(5, shape.num_heads, shape.rank_v)
    v_up = torch.randn(shape.num_groups_v, shape.rank_v, shape.group_size_v * shape.head_dim)
    values = apply_v_up(latents, v_up, shape)
    for head in range(shape.num_heads):
        group, own = divmod(head // shape.queries_per_kv, shape.group_size_v)
        columns = v_up[group, :, own * shape.head_dim : (own + 1) * shape.head_dim]
        torch.testing.assert_close(values[:, head], latents[:, head] @ columns)


def test_many_tokens_are_multiplied_some_at_a_time(monkeypatch):
    shape = LAYERS["per_head_odd_ranks"].shape
    latents = torch.randn(11 + PADDING_ROWS, shape.num_heads, shape.rank_v)
    v_up = torch.randn(shape.num_groups_v, shape.rank_v, shape.group_size_v * shape.head_dim)
    latents[11:] = float("nan")
    monkeypatch.setattr("palu_vllm.kernels.value_up.ROWS", 4)
    out = torch.full((len(latents), shape.num_heads, shape.head_dim), UNTOUCHED)
    write_values(latents, v_up, out, torch.tensor([0, 3, 11], dtype=torch.int32), shape)
    torch.testing.assert_close(out[:11], apply_v_up(latents[:11], v_up, shape))
    assert (out[11:] == UNTOUCHED).all()


def test_few_tokens_are_multiplied_in_the_reduce_kernel():
    """Up to the tokens whose programs read 16 MiB of ``v_up``: 32 heads of 384 x 128 numbers of two bytes each."""
    shape = SERVED_LAYERS["llama_3_8b_128_384"].shape
    assert REDUCED_BYTES // (32 * 384 * 128 * 2) == 5
    assert [reduce_multiplies(shape, rows, 2) for rows in (1, 5, 6, 1000)] == [True, True, False, False]


@pytest.mark.parametrize("implementation", [ReferenceAttention, TorchAttention, TritonAttention])
def test_a_factor_of_another_shape_is_refused(implementation):
    problem, v_up = factored("per_head_odd_ranks", [(1, 3)], torch.float32)
    with pytest.raises(ValueError, match=r"got v_up \[4, 22, 64\], expected \[4, 23, 64\]"):
        implementation(problem.shape, problem.rebuild, v_up=v_up[:, 1:])
    with pytest.raises(ValueError, match=r"got out \[4, 4, 23\], expected \[4, 4, 64\]"):
        implementation(problem.shape, problem.rebuild, v_up=v_up).attend(
            problem.query, problem.cache, problem.batch, problem.empty_out()
        )
