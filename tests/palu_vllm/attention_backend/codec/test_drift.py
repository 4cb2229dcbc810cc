"""Which tokens are looked at, what is remembered of them, and when a server is warned."""

import logging
from dataclasses import fields

import pytest
import torch

from palu_vllm.attention_backend.codec import drift
from palu_vllm.attention_backend.codec.drift import LEAST_TOKENS, DriftOptions, DriftWatch, stored_drift
from palu_vllm.format.codec.drift import token_drift
from palu_vllm.kernels.codec.reference import encode_tokens, store_codes
from tests.support.codecs.layers import layer_codec

EVERY = DriftOptions(seconds=0, tokens=16, half_life=64)


class Watched:
    """A watch with a clock that is set, and what it has published."""

    def __init__(self, options=EVERY, usual=None):
        self.now, self.published = 0.0, []
        self.watch = DriftWatch(options, usual or {}, self.publish, self.clock)

    def publish(self, layers, tokens):
        self.published.append((layers, tokens))

    def clock(self):
        return self.now

    def step(self, keys, values, tokens=16, layers=("0",)):
        """One step in which every layer finds the same."""
        sample = self.watch.sample(tokens)
        for layer in layers if sample else ():
            count = len(range(tokens)[sample.rows])
            sample.found[layer] = torch.tensor([[float(keys)] * count, [float(values)] * count])
        return sample


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 100, 8192])
def test_a_sample_is_spread_over_the_step_and_small(tokens):
    rows = range(tokens)[Watched().watch.sample(tokens).rows]
    assert min(tokens, 16) / 2 < len(rows) <= 16 and rows[-1] >= tokens - 1 - rows.step


def test_samples_are_seconds_apart_and_never_of_nothing():
    watched = Watched(DriftOptions(seconds=10))
    due = []
    for watched.now in (0.0, 4.0, 9.9, 10.0, 12.0, 31.0):
        due.append(watched.step(1, 1) is not None)
    assert due == [True, False, False, True, False, True]
    watched.now = 50.0
    assert watched.watch.sample(0) is None and watched.step(1, 1) is not None


def test_what_was_found_is_published_with_the_next_step():
    watched = Watched()
    watched.step(1.2, 0.8, layers=("0", "1"))
    assert not watched.published
    watched.watch.sample(1)
    [(layers, tokens)] = watched.published
    assert layers.keys() == {"0", "1"} and layers["1"] == pytest.approx([1.2, 0.8]) and tokens == 16


def test_a_mean_forgets_by_half_lives():
    watched = Watched()
    for ratio in (1.0, 3.0, 3.0, 3.0, 3.0):  # four samples of 16 are one half-life
        watched.step(ratio, 1.0)
    watched.watch.sample(1)
    kept = 0.5**0.25
    weights = torch.tensor([kept**age for age in range(5)])
    expected = (3 * weights[:4].sum() + weights[4]) / weights.sum()
    assert watched.published[-1][0]["0"] == pytest.approx([expected.item(), 1.0])


def test_what_is_no_number_counts_for_nothing():
    watched = Watched()
    watched.step(1.0, torch.nan)
    watched.step(torch.nan, torch.nan)
    watched.watch.sample(1)
    [(layers, tokens)] = watched.published
    assert tokens == 16 and layers["0"][0] == 1.0 and layers["0"][1] != layers["0"][1]


def test_a_step_that_no_layer_was_asked_in_publishes_nothing():
    watched = Watched()
    for _ in range(3):
        watched.watch.sample(4)
    assert not watched.published


def test_errors_are_counted_in_those_of_the_calibration():
    watched = Watched(usual={"0": [2.0, 0.5]})
    watched.step(3.0, 1.0, layers=("0", "1"))
    watched.watch.sample(1)
    assert watched.published[0][0] == {"0": pytest.approx([1.5, 2.0]), "1": pytest.approx([3.0, 1.0])}


@pytest.mark.parametrize(("ratio", "usual", "warnings"), [
    (2.8, {"0": [2.0, 2.0]}, 0), (3.2, {"0": [2.0, 2.0]}, 1), (3.2, {}, 0),
], ids=["below", "above", "a file without those of its calibration"])  # fmt: skip
def test_a_server_is_warned_once_above_the_threshold(monkeypatch, ratio, usual, warnings):
    told = []
    monkeypatch.setattr(drift.logger, "warning", lambda *said: told.append(said))
    watched = Watched(DriftOptions(seconds=0, warn_above=1.5), usual)
    for step in range(3 * LEAST_TOKENS // 16):
        watched.step(ratio, ratio)
        assert not told or step * 16 >= LEAST_TOKENS
    assert len(told) == warnings
    assert all("palu-doctor MODEL --codec OUT --text FILE" in said[0] for said in told)
    assert drift.logger.isEnabledFor(logging.WARNING)


def test_stored_tokens_are_found_in_their_slots():
    codec = layer_codec(((64, 4),), ((64, 3),), groups=1)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(5, 2, 32, generator=generator) for _ in range(2))
    positions, slots = torch.arange(3, 8), torch.tensor([17, 3, 40, 2, -1])
    cache = torch.zeros(4, 1, 16, codec.slot.bytes, dtype=torch.uint8)
    store_codes(codec, key, value, positions, cache, slots)
    expected = token_drift(codec, key, value, encode_tokens(codec, key, value, positions), positions)
    found = stored_drift(codec, key, value, positions, cache, slots)
    assert torch.equal(found[:, :4], expected[:, :4]) and found[:, 4].isnan().all()


def test_options_of_a_server():
    assert DriftOptions.of({}) == DriftOptions() and DriftOptions.of(False) is None
    assert DriftOptions.of({"seconds": 1.5, "tokens": 4}) == DriftOptions(seconds=1.5, tokens=4)


@pytest.mark.parametrize("said", [
    True, 3, "off", None, [], {"second": 1}, {"seconds": -1}, {"seconds": "1"}, {"tokens": 0}, {"tokens": 1.5},
    {"half_life": True}, {"warn_above": None},
])  # fmt: skip
def test_options_that_make_no_sense_get_one_sentence(said):
    with pytest.raises(ValueError, match=r"^--additional-config has .*; expected .*\.$") as refused:
        DriftOptions.of(said)
    assert "\n" not in str(refused.value)
    assert not isinstance(said, dict) or {*said} <= {each.name for each in fields(DriftOptions)} | {"second"}
