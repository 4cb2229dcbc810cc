"""Identities that the specification itself must satisfy."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import ReferenceAttention, latent_attention, rebuild_keys, rotate, visible
from tests.palu_vllm.kernels.paged_batches import (
    PADDING_ROWS,
    UNTOUCHED,
    Problem,
    cos_sin_table,
    only_request,
    random_problem,
)
from tests.support.shapes import LAYERS

REQUESTS = [(1, 63), (5, 5), (7, 40), (1, 1)]
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def attend(problem: Problem) -> torch.Tensor:
    out = problem.empty_out()
    ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


def test_uncompressed_layer_is_ordinary_attention():
    layer = LAYERS["uncompressed"]
    problem = random_problem(layer, [(40, 40)])
    shape, latents, positions = layer.shape, problem.latents, torch.arange(40)
    keys = rotate(latents.latent_k.view(40, shape.num_kv_heads, shape.head_dim), problem.rebuild.cos_sin, positions)
    values = latents.latent_v.view(40, shape.num_kv_heads, shape.head_dim)
    query = problem.query[:40]
    expected = scaled_dot_product_attention(
        query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), is_causal=True, enable_gqa=True
    ).transpose(0, 1)

    of_whole_groups = attend(problem)[:40].view(40, shape.num_heads, shape.group_size, shape.head_dim)

    kv_head_in_group = torch.arange(shape.num_heads) // shape.queries_per_kv % shape.group_size
    own = of_whole_groups[:, torch.arange(shape.num_heads), kv_head_in_group]
    torch.testing.assert_close(own, expected)


@every_layer
def test_values_rebuilt_after_the_softmax_equal_values_rebuilt_before(layer):
    problem = random_problem(layer, [(9, 30)])
    shape, (latent_k, latent_v) = layer.shape, problem.stored()
    v_up = torch.randn(shape.rank_v, shape.head_dim)
    keys = rebuild_keys(latent_k, problem.rebuild, shape, torch.arange(30))
    mask = visible(torch.arange(21, 30), torch.arange(30), shape.sliding_window)

    after = attend(problem)[:9] @ v_up
    before = latent_attention(problem.query[:9], keys, latent_v @ v_up, mask, shape)

    torch.testing.assert_close(after, before)


def test_rotation_keeps_norms_and_depends_on_distance_only():
    table = cos_sin_table(200, 80)
    query, key = torch.randn(2, 11, 3, 80).unbind(0)
    positions = torch.arange(11)
    near = (rotate(query, table, positions) * rotate(key, table, positions + 6)).sum(-1)
    far = (rotate(query, table, positions + 131) * rotate(key, table, positions + 137)).sum(-1)
    torch.testing.assert_close(near, far, atol=2e-5, rtol=0)
    torch.testing.assert_close(rotate(query, table, positions).norm(dim=-1), query.norm(dim=-1))


def test_numbers_that_are_not_rotated_stay_and_the_others_turn_as_a_smaller_head():
    table, x, positions = cos_sin_table(50, 24), torch.randn(7, 3, 80), torch.arange(40, 47)
    rotated = rotate(x, table, positions)
    assert torch.equal(rotated[..., 24:], x[..., 24:])
    assert torch.equal(rotated[..., :24], rotate(x[..., :24], table, positions))


def test_key_norm_is_torchs_rms_norm_of_every_head_before_rotation():
    layer = LAYERS["key_norm"]
    problem = random_problem(layer, [(1, 20)])
    shape, rebuild, positions = layer.shape, problem.rebuild, torch.arange(20)
    keys = torch.einsum("tgr,grd->tgd", problem.latents.latent_k, rebuild.k_up).reshape(20, -1, shape.head_dim)
    expected = rotate(rms_norm(keys, (shape.head_dim,), rebuild.k_norm, rebuild.k_norm_eps), rebuild.cos_sin, positions)
    torch.testing.assert_close(rebuild_keys(problem.latents.latent_k, rebuild, shape, positions), expected)


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer.has_key_norm and not layer.has_bias])
def test_normalised_keys_do_not_depend_on_the_length_of_the_latent(name):
    problem = random_problem(LAYERS[name], [(1, 20)])
    rebuild = replace(problem.rebuild, k_norm_eps=1e-12)
    latents, positions = problem.latents.latent_k, torch.arange(20)
    longer = latents * torch.rand(20, 1, 1).add(0.5)
    expected = rebuild_keys(latents, rebuild, problem.shape, positions)
    torch.testing.assert_close(rebuild_keys(longer, rebuild, problem.shape, positions), expected, atol=1e-5, rtol=1e-5)


@every_layer
def test_shifting_all_positions_changes_nothing(layer):
    problem = random_problem(layer, [(9, 30)])
    shape, shift = layer.shape, 100
    latents = problem.latents.latent_k, problem.latents.latent_v
    rebuild = replace(problem.rebuild, cos_sin=cos_sin_table(30 + shift, shape.rotary_width))
    mask = visible(torch.arange(21, 30), torch.arange(30), shape.sliding_window)

    def outputs(first: int) -> torch.Tensor:
        positions = torch.arange(first, first + 30)
        query = rotate(problem.query[:9], rebuild.cos_sin, positions[21:])
        keys = rebuild_keys(latents[0].unflatten(-1, (-1, shape.rank_k)).flatten(1, 2), rebuild, shape, positions)
        return latent_attention(query, keys, latents[1].unflatten(-1, (-1, shape.rank_v)).flatten(1, 2), mask, shape)

    torch.testing.assert_close(outputs(0), outputs(shift), atol=1e-4, rtol=1e-4)


@every_layer
def test_which_blocks_hold_the_latents_changes_nothing(layer):
    problem = random_problem(layer, REQUESTS)
    order = torch.randperm(problem.cache.shape[0])
    moved_cache = torch.empty_like(problem.cache)
    moved_cache[order] = problem.cache
    moved = replace(problem.batch, block_table=order[problem.batch.block_table.long()].int())
    assert torch.equal(attend(problem), attend(replace(problem, cache=moved_cache, batch=moved)))


@every_layer
def test_batch_company_changes_nothing(layer):
    problem = random_problem(layer, REQUESTS)
    alone = [attend(only_request(problem, request)) for request in range(len(REQUESTS))]
    torch.testing.assert_close(attend(problem)[:-PADDING_ROWS], torch.cat(alone))


@every_layer
@pytest.mark.parametrize("block_size", [16, 48, 256])
def test_chunks_equal_one_shot(layer, block_size):
    problem = random_problem(layer, [(63, 63)], block_size)
    chunks = []
    for start, stop in ((0, 1), (1, 30), (30, 62), (62, 63)):
        batch = PagedBatch(
            block_table=problem.batch.block_table,
            seq_lens=torch.tensor([stop], dtype=torch.int32),
            query_start_loc=torch.tensor([0, stop - start], dtype=torch.int32),
            max_query_len=stop - start,
            max_seq_len=stop,
        )
        chunks.append(attend(replace(problem, query=problem.query[start:stop], batch=batch)))
    torch.testing.assert_close(torch.cat(chunks), attend(problem)[:63])


def test_a_window_of_one_token_returns_the_latent_value_of_that_token():
    layer = LAYERS["sliding_window"].with_window(1)
    problem = random_problem(layer, [(20, 30)])
    shape = layer.shape
    own = problem.latents.latent_v[10:].repeat_interleave(shape.num_heads // shape.num_groups, dim=1)
    torch.testing.assert_close(attend(problem)[:20], own)


def test_a_window_longer_than_the_request_is_no_window():
    layer = LAYERS["sliding_window"]
    narrow, wide = random_problem(layer, REQUESTS), random_problem(layer.with_window(64), REQUESTS)
    unlimited = replace(wide, shape=replace(layer.shape, sliding_window=None))
    assert torch.equal(attend(wide), attend(unlimited))
    assert not torch.allclose(attend(narrow), attend(unlimited))


@every_layer
def test_padding_stays_untouched_and_nothing_unused_is_read(layer):
    out = attend(random_problem(layer, REQUESTS))
    assert (out[-PADDING_ROWS:] == UNTOUCHED).all()
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "got 5 heads, expected a multiple of 4 KV heads"),
        ({"group_size_k": 3, "group_size_v": 3}, "expected a multiple of group size 3"),
        ({"group_size_k": 3}, "got group sizes 3 of K and 4 of V, expected one that divides the other"),
        ({"group_size_v": 3}, "got group sizes 4 of K and 3 of V"),
        ({"group_size_k": 2}, r"got k_up \[1, 48, 256\], expected \[2, 48, 128\]"),
        ({"rank_k": 49}, r"got k_up \[1, 48, 256\], expected \[1, 49, 256\]"),
        ({"sliding_window": 0}, "got sliding_window 0"),
        ({"rotary_dim": 66}, "got rotary_dim 66, expected an even number from 2 to 64"),
        ({"rotary_dim": 31}, "got rotary_dim 31"),
        ({"rotary_dim": 32}, r"got cos_sin \[1, 64\], expected \[1, 32\]"),
    ],
)
def test_contradicting_sizes_are_refused(change, message):
    layer = LAYERS["all_heads_in_one_group"]
    rebuild = random_problem(layer, [(1, 1)]).rebuild
    with pytest.raises(ValueError, match=message):
        ReferenceAttention(replace(layer.shape, **change), rebuild)


def test_a_missing_k_up_needs_full_rank():
    layer = LAYERS["all_heads_in_one_group"]
    rebuild = replace(random_problem(layer, [(1, 1)]).rebuild, k_up=None)
    with pytest.raises(ValueError, match="got no k_up and rank_k 48, expected rank_k 256"):
        ReferenceAttention(layer.shape, rebuild)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_norm": torch.ones(32)}, r"got k_norm \[32\], expected \[64\]"),
        ({"k_norm_eps": 0.0}, "got k_norm_eps 0.0, expected a positive number"),
    ],
)
def test_a_key_norm_that_does_not_fit_is_refused(change, message):
    layer = LAYERS["key_norm"]
    rebuild = replace(random_problem(layer, [(1, 1)]).rebuild, **change)
    with pytest.raises(ValueError, match=message):
        ReferenceAttention(layer.shape, rebuild)


def test_a_query_of_another_size_is_refused():
    problem = random_problem(LAYERS["uncompressed"], [(1, 5)])
    with pytest.raises(ValueError, match="got query"):
        attend(replace(problem, query=problem.query[..., :60]))
