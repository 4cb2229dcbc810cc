"""Probes of single layers: what they are, and that bits follow them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.build import build, chosen, solve_all
from offline_compress.codec.collect import Collector, sample_positions
from offline_compress.codec.judge import codec_divergence
from offline_compress.codec.probes import LEAST, loss_ratios
from tests.support.tiny_models import SMALL, build_dense

ROWS, TOKENS = 4, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = build_dense(tmp_path_factory.mktemp("llama"), "llama", **SMALL)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows(model):
    return torch.randint(model.config.vocab_size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def solved(model, rows):
    collector, generator = Collector(model, None), torch.Generator().manual_seed(1)
    for number, row in enumerate(rows):
        collector.sample(row, sample_positions(number, ROWS, TOKENS, 2 * TOKENS, generator), generator, True)
    collector.first_tokens(rows[:, 0])
    return solve_all(collector.collected)


def test_a_ratio_is_what_a_layer_alone_costs_over_what_was_expected(model, rows, solved):
    events = []
    probe = chosen(solved, 5.0, 2)
    found = loss_ratios(model, rows[0], solved, probe, events.append)
    for number, slot, expected in zip(solved, probe.slots, probe.losses, strict=True):
        alone = codec_divergence(model, rows[:1], {number: build(solved[number], slot)})
        assert found[number] == pytest.approx(max(LEAST, alone / expected))
    assert [event["number"] for event in events] == [0, 1] and events[-1]["seconds_left"] == 0


def test_bits_follow_what_probes_cost(solved):
    for layer in solved:
        plain, weighed = (chosen(solved, 4.0, 4, ratios) for ratios in (None, {layer: 50.0}))
        assert weighed.slots[layer].bytes > plain.slots[layer].bytes
        assert plain.losses[layer] < weighed.losses[layer] < 50 * plain.losses[layer]
