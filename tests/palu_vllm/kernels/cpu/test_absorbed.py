"""The vectorised absorbed scores against their specification, and where they are used."""

from dataclasses import replace

import pytest
import torch

from palu_vllm.kernels.absorbed import absorbed_scores
from palu_vllm.kernels.cpu import absorbed as cpu_absorbed
from palu_vllm.kernels.cpu.absorbed import AbsorbedScores
from palu_vllm.kernels.cpu.attention import TorchAttention
from palu_vllm.kernels.cpu.tiles import KeySource, Tiles, pair_up
from palu_vllm.kernels.interface import KeyRebuild
from tests.palu_vllm.kernels.paged_batches import Problem, cos_sin_table, random_problem
from tests.support.shapes import LAYERS, Layer, sizes

TILE = 128
ABSORBED = {
    "one_group": Layer(sizes(8, 4, 64, 4, 48, 40)),
    "two_groups_bias": Layer(sizes(8, 4, 80, 2, 33, 50), has_bias=True),
    "per_head": Layer(sizes(4, 4, 128, 1, 17, 23)),
    "two_keys_per_slot_bias": Layer(sizes(8, 4, 64, 4, 33, 50), has_bias=True).with_latents(key_latents=2),
    "two_values_per_slot": Layer(sizes(8, 4, 64, 4, 33, 20)).with_latents(value_latents=2),
    "partial_rotary_bias": Layer(sizes(4, 2, 64, 2, 33, 36), has_bias=True).with_rotary_dim(24),
}


def after_attending(problem: Problem) -> TorchAttention:
    attention = TorchAttention(problem.shape, problem.rebuild)
    attention.attend(problem.query, problem.cache, problem.batch, problem.empty_out().float())
    return attention


@pytest.mark.parametrize("layer", ABSORBED.values(), ids=ABSORBED)
def test_equals_the_specification_in_every_tile(layer):
    problem = random_problem(layer, [(1, 2 * TILE), (1, 3 * TILE)])
    shape, (stored, _) = problem.shape, problem.stored()
    absorbed = AbsorbedScores.where_cheaper(KeySource(shape, problem.rebuild), TILE)
    positions = torch.cat((torch.arange(2 * TILE), torch.arange(3 * TILE)))
    tiles = Tiles(torch.tensor([0, 0, 1, 1, 1]), positions.view(5, TILE), torch.zeros(5, TILE, dtype=torch.bool))
    paired = pair_up(problem.query[:2], shape.rotary_dim).mul(shape.scale).unflatten(1, (shape.num_kv_heads, -1))
    scores = absorbed.scores(paired, tiles, stored.transpose(0, 1)).permute(1, 0, 2, 3).flatten(1, 2)
    part = absorbed.absorption.tile_tokens
    for tile in range(5):
        for first in range(0, TILE, part):
            latent_k = stored[tile * TILE + first :][:part]
            arguments = shape, problem.rebuild, absorbed.absorption
            query = problem.query[tiles.owner[tile]]
            expected = absorbed_scores(query, latent_k, int(tiles.positions[tile, first]), *arguments)
            torch.testing.assert_close(scores[tile, :, first : first + part], expected, atol=5e-6, rtol=1e-5)


def test_decoding_is_absorbed_and_prefill_is_not():
    layer = ABSORBED["one_group"]
    assert isinstance(after_attending(random_problem(layer, [(1, 300)])).absorbed[TILE], AbsorbedScores)
    assert after_attending(random_problem(layer, [(300, 300)])).absorbed == {}


@pytest.mark.parametrize("name", ["uncompressed", "key_norm"])
def test_whole_and_normalised_keys_are_not_absorbed(name):
    assert after_attending(random_problem(LAYERS[name], [(1, 300)])).absorbed == {TILE: None}


def test_a_table_without_constant_frequencies_is_rebuilt():
    problem = random_problem(ABSORBED["one_group"], [(1, 300)])
    two_tables = torch.cat((cos_sin_table(100, 64), cos_sin_table(300, 64, 5e5)))
    rebuild = KeyRebuild(problem.rebuild.k_up, None, two_tables)
    assert after_attending(replace(problem, rebuild=rebuild)).absorbed == {TILE: None}


def test_layers_with_one_rotary_table_share_the_plan(monkeypatch):
    problem = random_problem(ABSORBED["one_group"], [(1, 300)])
    first = after_attending(problem).absorbed[TILE].absorption
    monkeypatch.setattr(cpu_absorbed, "plan_absorption", None)  # a second search would fail
    assert after_attending(problem).absorbed[TILE].absorption is first
