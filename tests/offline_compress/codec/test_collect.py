"""Moments are those of the keys, values and gradients that attention has, at the positions that were asked for."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.collect import Collector, rope_frequencies, sample_positions
from offline_compress.codec.moments import SideMoments, default_group_size
from tests.support.tiny_models import SMALL, build_dense

TOKENS = torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = build_dense(tmp_path_factory.mktemp("llama"), "llama", **SMALL)
    return AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)


def collected(model, positions, gradients=True):
    collector = Collector(model, None)
    collector.sample(TOKENS, positions, torch.Generator().manual_seed(1), gradients)
    return collector.collected.layers


def test_moments_are_those_of_the_cache(model):
    moments = collected(model, torch.arange(40))[1]
    with torch.inference_mode():
        layer = model(TOKENS[None], use_cache=True).past_key_values.layers[1]
    keys = layer.keys[0, :, 1:].transpose(0, 1).flatten(1).double()
    values = layer.values[0, :, 1:].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(moments.sides.key.second[0], keys.T @ keys, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moments.sides.value.total[0], values.sum(0), rtol=1e-4, atol=1e-3)
    assert moments.tokens == moments.sides.key.measured == 39


def test_scores_and_metric_of_values_do_not_depend_on_where_a_sample_lies(model):
    """Only distances matter but for the first token, which these samples do not leave behind."""
    near, far = (collected(model, torch.arange(40) + start)[0].sides.value for start in (0, 60))
    torch.testing.assert_close(near.second, far.second, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(near.metric, far.metric, rtol=2e-2, atol=1e-4 * float(near.metric.abs().max()))


def test_without_gradients_the_metric_stays(model):
    moments = collected(model, torch.arange(40), gradients=False)[0]
    assert moments.tokens == 39 and moments.sides.key.measured == 0 and not moments.sides.key.metric.any()


def test_the_longest_gradients_count_like_the_others():
    side, rows = SideMoments.zeros(1, 4), torch.ones(200, 1, 4)
    rows[7] = 1000.0
    side.add_gradients(rows)
    torch.testing.assert_close(side.metric, torch.full((1, 4, 4), 200.0, dtype=torch.float64))


def test_first_tokens_are_texts_of_their_own(model):
    collector = Collector(model, None)
    collector.first_tokens(TOKENS[:10])
    side = collector.collected.layers[1].sides.key
    with torch.inference_mode():
        keys = model(TOKENS[:10, None], use_cache=True).past_key_values.layers[1].keys
    torch.testing.assert_close(side.first[0], keys.sum(0).flatten().double(), rtol=1e-4, atol=1e-4)
    assert side.firsts == 10


def test_positions_cover_the_context():
    generator = torch.Generator().manual_seed(0)
    rows = [sample_positions(number, 16, 64, 4096, generator) for number in range(16)]
    assert all(row[0] == 0 and (row[2:] - row[1:-1] == 1).all() for row in rows)
    starts = torch.tensor([int(row[1]) for row in rows])
    assert (starts.diff() > 0).all() and starts[0] < 300 and starts[-1] > 3700 and max(map(max, rows)) < 4096


def test_frequencies_are_those_of_the_model(model):
    (found,) = rope_frequencies(model).values()
    torch.testing.assert_close(found, 10_000.0 ** -(torch.arange(8).double() / 8), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kv_heads", "heads", "widest", "size"), [
    (3, 9, 64, 3), (8, 32, 128, 4), (1, 4, 256, 1), (32, 32, 128, 4), (4, 32, 64, 2), (8, 64, 64, 2), (2, 64, 128, 1),
])  # fmt: skip
def test_groups_hold_sixteen_query_heads_and_512_numbers(kv_heads, heads, widest, size):
    assert default_group_size(kv_heads, heads, widest) == size
