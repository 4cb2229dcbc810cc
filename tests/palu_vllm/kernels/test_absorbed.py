"""Absorbed RoPE against scores of whole, exactly rotated keys in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.absorbed import (
    Absorption,
    absorbed_scores,
    as_pairs,
    chebyshev,
    fit,
    known_frequencies,
    plan_absorption,
    relative_cost,
    rotary_frequencies,
)
from palu_vllm.kernels.interface import KeyRebuild
from palu_vllm.kernels.reference import rebuild_keys
from tests.palu_vllm.kernels.paged_batches import cos_sin_table
from tests.support.shapes import sizes

TILES = (16, 32, 64, 128)
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
}


def frequencies_of(theta: float, head_dim: int) -> torch.Tensor:
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def random_rebuild(shape: LayerShape, cos_sin: torch.Tensor, has_bias: bool) -> KeyRebuild:
    width = shape.group_size_k * shape.head_dim
    bias = torch.randn(shape.num_kv_heads * shape.head_dim) if has_bias else None
    return KeyRebuild(torch.randn(shape.num_groups_k, shape.rank_k, width) / shape.rank_k**0.5, bias, cos_sin)


def exact_scores(query, latent_k, start, shape, rebuild) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 ``[num_heads, tokens]``: scores, and for each the sum of its pairs' lengths, to which errors compare."""
    keys = torch.einsum("tgr,grd->tgd", latent_k.double(), rebuild.k_up.double())
    keys = keys.reshape(len(latent_k), shape.num_kv_heads, shape.head_dim)
    if rebuild.k_bias is not None:
        keys = keys + rebuild.k_bias.double().view(shape.num_kv_heads, -1)
    keys = torch.complex(*keys.chunk(2, -1)).repeat_interleave(shape.queries_per_kv, 1)
    rotation = torch.complex(*rebuild.cos_sin[start : start + len(latent_k)].double().chunk(2, -1))
    q = torch.complex(*query.double().chunk(2, -1))
    scores = torch.einsum("hi,ti,thi->ht", q.conj(), rotation, keys).real
    lengths = torch.einsum("hi,thi->ht", q.abs(), keys.abs()) * rotation.abs().max()
    return shape.scale * scores, shape.scale * lengths


def assert_close(shape, rebuild, absorption, start, tokens, tolerance) -> None:
    """Errors stay below the tolerance and the rounding of sums of ``rank_k`` float32 products."""
    query, latent_k = (
        torch.randn(shape.num_heads, shape.head_dim),
        torch.randn(tokens, shape.num_groups_k, shape.rank_k),
    )
    scores = absorbed_scores(query, latent_k, start, shape, rebuild, absorption)
    expected, lengths = exact_scores(query, latent_k, start, shape, rebuild)
    assert ((scores - expected).abs() <= (tolerance + 2e-6) * lengths.mean()).all()


shapes = st.sampled_from([(1, 1, 1), (4, 2, 2), (8, 2, 1), (8, 4, 4), (14, 2, 2)])


@settings(max_examples=60)
@given(
    theta=st.sampled_from([1e4, 5e5, 1e6]),
    heads=shapes,
    head_dim=st.sampled_from([64, 80, 128]),
    tolerance=st.sampled_from([1e-3, 1e-5, 1e-6]),
    start=st.integers(0, 3900),
    has_bias=st.booleans(),
    data=st.data(),
)
def test_equals_exact_scores_within_the_tolerance(theta, heads, head_dim, tolerance, start, has_bias, data):
    num_heads, kv_heads, group_size = heads
    shape = sizes(num_heads, kv_heads, head_dim, group_size, 24, 24)
    absorption = plan_absorption(frequencies_of(theta, head_dim), shape.queries_per_kv, TILES, tolerance)
    if absorption is None:
        assert shape.queries_per_kv > 2
        return
    tokens = data.draw(st.integers(1, absorption.tile_tokens))
    rebuild = random_rebuild(shape, cos_sin_table(4096, head_dim, theta), has_bias)
    assert_close(shape, rebuild, absorption, start, tokens, tolerance)


@pytest.mark.parametrize("start", [10**5 + 3, 10**6])
def test_equals_exact_scores_far_out(start):
    shape = sizes(4, 2, 32, 2, 24, 24)
    table = cos_sin_table(10**6 + 64, 32, 5e5)
    absorption = plan_absorption(rotary_frequencies(table), 2, (64,), 1e-6)
    assert_close(shape, random_rebuild(shape, table, True), absorption, start, 64, 1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_read_from_any_scaled_table(scaling):
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=16384,
        rope_parameters={"rope_theta": 5e5, **SCALINGS[scaling]},
    )
    inverse, factor = ROPE_INIT_FUNCTIONS[scaling](config, "cpu")
    angles = torch.arange(8192.0)[:, None] * inverse  # in float32, as vLLM and transformers do
    table = torch.cat((angles.cos(), angles.sin()), -1) * factor
    torch.testing.assert_close(rotary_frequencies(table), inverse.double(), rtol=1e-6, atol=1e-9)
    shape = sizes(4, 2, 128, 2, 24, 24)
    absorption = plan_absorption(rotary_frequencies(table), 2, TILES, 1e-5)
    rounding = 8192 * inverse[absorption.fast].item() * 2**-23  # of the angles in the table itself
    assert_close(shape, random_rebuild(shape, table, False), absorption, 8000, 16, 1e-5 + rounding)


@pytest.mark.parametrize(
    "table",
    [
        torch.cat((cos_sin_table(50, 64), cos_sin_table(50, 64, 5e5))),
        cos_sin_table(100, 64).bfloat16().float(),
        cos_sin_table(1, 64),
    ],
    ids=["two_tables_in_one", "rounded_to_bfloat16", "one_position"],
)
def test_pairs_without_a_constant_frequency_are_rebuilt(table):
    found = rotary_frequencies(table)
    assert found.isnan().sum() >= 16
    absorption = plan_absorption(found, 1, TILES, 1e-6)
    assert absorption is None or absorption.fast > found.isnan().nonzero().max()


@settings(max_examples=40)
@given(tile=st.sampled_from(TILES), terms=st.integers(1, 12), angle=st.floats(1e-6, 6.0))
def test_fit_reports_its_largest_error(tile, terms, angle):
    frequencies = torch.tensor([angle / tile], dtype=torch.float64)
    coefficients, error = fit(frequencies, tile, terms)
    waves = torch.exp(1j * torch.arange(tile) * frequencies)
    left = chebyshev(tile, terms).T.to(torch.complex128) @ coefficients[:, 0] - waves
    torch.testing.assert_close(left.abs().max(), error[0])


def test_cost_of_rebuilding_everything_is_one():
    assert relative_cost(32, 32, 0, 64, 4) == 1


@pytest.mark.parametrize("queries_per_kv", [1, 2, 4])
def test_no_other_choice_costs_less(queries_per_kv):
    frequencies = frequencies_of(5e5, 128)
    chosen = plan_absorption(frequencies, queries_per_kv, TILES, 1e-4)
    cost = relative_cost(64, chosen.fast, len(chosen.basis), chosen.tile_tokens, queries_per_kv)
    for tile in TILES:
        for terms in range(1, 13):
            fast = int((fit(frequencies, tile, terms)[1] > 1e-4).sum())
            assert relative_cost(64, fast, terms, tile, queries_per_kv) >= cost


def test_many_queries_per_key_are_cheaper_to_rebuild():
    assert plan_absorption(frequencies_of(1e4, 64), 16, TILES, 1e-6) is None


def test_a_wrong_frequency_would_be_noticed():
    shape = sizes(2, 1, 64, 1, 24, 24)
    absorption = plan_absorption(frequencies_of(5e5, 64), 2, (64,), 1e-6)
    rebuild = random_rebuild(shape, cos_sin_table(4096, 64, 5e5), False)
    wrong: Absorption = replace(absorption, coefficients=absorption.coefficients.roll(1, dims=1))
    with pytest.raises(AssertionError):
        assert_close(shape, rebuild, wrong, 100, 64, 1e-6)


def test_pairs_are_first_and_second_halves():
    assert as_pairs(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1 + 3j, 2 + 4j]


def test_numbers_that_are_not_rotated_are_pairs_behind_the_others():
    assert as_pairs(torch.arange(1.0, 9.0), 4).tolist() == [1 + 3j, 2 + 4j, 5 + 7j, 6 + 8j]


@settings(max_examples=20)
@given(rotary_dim=st.sampled_from([16, 24, 62]), start=st.integers(0, 3900), has_bias=st.booleans())
def test_numbers_that_are_not_rotated_are_absorbed(rotary_dim, start, has_bias):
    """Against the reference, in which they have no pairs; whatever the tolerance, one term is exact for them."""
    shape = replace(sizes(4, 2, 64, 2, 24, 24), rotary_dim=rotary_dim)
    table = cos_sin_table(4096, rotary_dim, 5e5)
    rebuild = random_rebuild(shape, table, has_bias)
    absorption = plan_absorption(known_frequencies(table, 64), 2, TILES, 1e-6)
    assert absorption.fast <= rotary_dim // 2
    query, latent_k = torch.randn(shape.num_heads, 64), torch.randn(16, shape.num_groups, shape.rank_k)
    keys = rebuild_keys(latent_k, rebuild, shape, torch.arange(start, start + 16)).repeat_interleave(2, 1)
    expected = shape.scale * torch.einsum("hd,thd->ht", query, keys)
    scores = absorbed_scores(query, latent_k, start, shape, rebuild, absorption)
    torch.testing.assert_close(scores, expected, atol=3e-5, rtol=0)
