"""What decoding absorbs follows from the table of rotations, the shape and the dtype, by the cost of padded tiles."""

from dataclasses import replace

import pytest
import torch

from benchmarks.kernels.layers import SERVED_LAYERS, SERVED_PACKED_LAYERS
from palu_vllm.kernels.absorbed import WORTHWHILE, fit
from palu_vllm.kernels.gpu.decode.plan import (
    TERMS,
    DecodePlan,
    absorbing,
    columns,
    decode_plan,
    plan_absorbed_tiles,
    tolerance_of,
)
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.gpu.tiling import Device, decode_tiling
from palu_vllm.kernels.interface import KeyRebuild
from tests.palu_vllm.kernels.paged_batches import cos_sin_table, random_problem
from tests.support.shapes import LAYERS

H200 = Device(multiprocessors=132, shared_memory=227 * 1024)
SERVED = {name: layer for name, layer in (SERVED_LAYERS | SERVED_PACKED_LAYERS).items() if layer.compressed}
SERVED = {name: layer for name, layer in SERVED.items() if not layer.has_key_norm}
every_layer = pytest.mark.parametrize("layer", SERVED.values(), ids=SERVED)


def frequencies_of(theta: float, head_dim: int = 128) -> torch.Tensor:
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


@every_layer
def test_served_layers_absorb_and_fit(layer):
    tiling = decode_tiling(layer.shape, 2, H200)
    plan = plan_absorbed_tiles(frequencies_of(layer.theta), layer.shape, tiling, torch.bfloat16, H200)
    assert plan.tiling.terms > 0 and plan.tiling.tokens == tiling.tokens
    assert plan.tiling.shared_memory(layer.shape.rank_k, 2) <= H200.shared_memory
    assert plan.basis.shape == (plan.tiling.terms, tiling.tokens)
    assert plan.coefficients.shape == (2, plan.tiling.terms, 64 - plan.tiling.half)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_other_choice_costs_less(layer, dtype):
    shape, frequencies = layer.shape, frequencies_of(layer.theta)
    tiling = decode_tiling(shape, 2, H200)
    chosen = columns(shape, plan_absorbed_tiles(frequencies, shape, tiling, dtype, H200).tiling)
    others = [absorbing(frequencies, shape, tiling, terms, tolerance_of(dtype)) for terms in TERMS]
    lowest, whole = min(columns(shape, other.tiling) for other in others if other), columns(shape, tiling)
    assert chosen == (lowest if lowest < WORTHWHILE * whole else whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_absorbed_pair_is_within_the_tolerance(dtype):
    layer = SERVED_LAYERS["llama_3_8b_128_384"]
    frequencies = frequencies_of(layer.theta)
    plan = plan_absorbed_tiles(frequencies, layer.shape, decode_tiling(layer.shape, 2, H200), dtype, H200)
    _, errors = fit(frequencies, plan.tiling.tokens, plan.tiling.terms)
    assert errors[plan.tiling.half :].max() <= tolerance_of(dtype)


def test_cost_counts_a_full_rebuild_and_its_scores():
    shape = SERVED_LAYERS["llama_3_8b_128_384"].shape
    tiling = decode_tiling(shape, 2, H200)
    assert columns(shape, tiling) == 4 * 128 * (1 + 16 / 128)


def test_one_head_with_many_rows_is_rebuilt():
    shape = replace(SERVED_LAYERS["llama_3_8b_128_384"].shape, group_size_k=1, group_size_v=1, num_heads=64)
    tiling = decode_tiling(shape, 2, H200, queries=4)
    assert plan_absorbed_tiles(frequencies_of(1e4), shape, tiling, torch.bfloat16, H200) == DecodePlan(tiling)


def test_a_table_without_frequencies_is_rebuilt():
    shape = SERVED_LAYERS["llama_3_8b_128_384"].shape
    two_tables = torch.cat((cos_sin_table(100, 128), cos_sin_table(300, 128, 5e5)))
    rebuild = KeyRebuild(torch.empty(2, 128, 512), None, two_tables)
    for queries in (1, 2, 4, 8):
        assert decode_plan(shape, rebuild, queries, torch.bfloat16, H200).basis is None


@pytest.mark.parametrize("queries", [1, 2])
def test_keys_that_are_normalised_are_rebuilt_in_small_tiles_loaded_ahead(queries):
    layer = SERVED_LAYERS["qwen_3_8b_256_256"]
    rebuild = KeyRebuild(torch.empty(2, 256, 512), None, cos_sin_table(300, 128, layer.theta))
    plain, normalised = (
        decode_plan(layer.shape, replace(rebuild, k_norm=norm), queries, torch.bfloat16, H200)
        for norm in (None, torch.ones(128))
    )
    assert plain.basis is not None and normalised.basis is None
    assert (normalised.tiling.half, normalised.tiling.pairs, normalised.tiling.num_stages) == (64, 16, 2)
    assert normalised.tiling.shared_memory(layer.shape.rank_k, 2) <= H200.shared_memory


def test_plans_are_found_before_the_first_step_and_shared(monkeypatch):
    problem = random_problem(LAYERS["all_heads_in_one_group"], [(1, 5)], dtype=torch.float16)
    first = TritonAttention(problem.shape, problem.rebuild).plan(1, torch.float16, problem.cache.device)
    monkeypatch.setattr("palu_vllm.kernels.gpu.decode.plan.plan_absorbed_tiles", None)  # a second search would fail
    again = TritonAttention(problem.shape, problem.rebuild)
    assert again.plan(1, torch.float16, problem.cache.device) is first
    again.attend(problem.query, problem.cache, problem.batch, problem.empty_out())
