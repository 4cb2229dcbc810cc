from itertools import pairwise

import pytest
import torch

from benchmarks.methods.harness.interface import part
from benchmarks.methods.kept.pyramidinfer import PyramidInfer, falling
from tests.benchmarks.methods.stores import layer, tokens


@pytest.mark.parametrize("strategy", ["linear", "cosine"])
def test_deeper_layers_keep_fewer(strategy):
    method = PyramidInfer(prefill_decay_ratio=0.2, prefill_decay_strategy=strategy, min_context_length=8)
    counts = [method.kept(tokens(100), layer(index, num_layers=8)).keys.shape[1] for index in range(8)]
    assert counts[0] == 100 and counts == sorted(counts, reverse=True) and 20 <= counts[-1] < 40
    assert counts[4] == 60  # half way down


def test_the_newest_stay_and_all_heads_keep_the_same():
    kept = PyramidInfer(min_context_length=8).kept(tokens(100), layer(3))
    assert torch.equal(kept.positions[0], kept.positions[1])
    assert torch.equal(kept.positions[0, -20:], torch.arange(80, 100)) and (kept.positions.diff() > 0).all()


def test_what_the_newest_attend_to_is_kept():
    x = tokens(100)
    x.keys[:, 5] = 50 * x.queries[::2, -20:].mean(1)
    queries = x.queries[:, -20:].mean(1, keepdim=True).expand(-1, 100, -1)
    method = PyramidInfer(prefill_decay_ratio=0.0, min_context_length=21, streamingllm_sink_len=0)
    kept = method.kept(x._replace(queries=queries), layer(15, num_layers=16))
    assert kept.keys.shape[1] == 21 and kept.positions[0, 0] == 5


def test_sinks_stay():
    method = PyramidInfer(prefill_decay_ratio=0.0, min_context_length=26, streamingllm_sink_len=4)
    kept = method.kept(tokens(100), layer(15, num_layers=16))
    assert torch.equal(kept.positions[0, :4], torch.arange(4)) and kept.keys.shape[1] == 26


def judged_by_hand(method, x, where, prompt):
    """The places of the tokens that stay, one decoded after the other, with every row of attention kept."""
    kept, paid, waiting = list(range(prompt)), {}, []
    block, share = method.exceed_length_to_compress, method.gen_compress_ratio
    for now in range(prompt, x.keys.shape[1]):
        kept, waiting = [*kept, now], [*waiting, now]
        scores = torch.einsum("hd,htd->ht", x.queries[:, now], x.keys.repeat_interleave(2, 0)[:, kept]) * where.scale
        paid[now] = dict(zip(kept, scores.softmax(-1).mean(0).tolist(), strict=True))
        if len(waiting) >= block + 1 + int(method.recent_ratio * (now + 1)):
            weights = torch.linspace(1, method.distance_weight, len(waiting) - block)
            judges = list(zip(waiting[block:], weights, strict=True))
            received = {old: sum(weight * paid[each][old] for each, weight in judges) for old in waiting[:block]}
            stays = max(1, int(block * share * falling(method.gen_decay_ratio, method.gen_decay_strategy, where)))
            best = sorted(received, key=received.get)[-stays:]
            kept = [place for place in kept if place not in waiting[:block] or place in best]
            waiting = waiting[block:]
    return kept


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("strategy", ["linear", "cosine"])
def test_decoded_tokens_are_judged_by_the_newest_as_published(index, strategy):
    where, x = layer(index, torch.float32), tokens(100)
    method = PyramidInfer(gen_decay_strategy=strategy, exceed_length_to_compress=6, gen_decay_ratio=0.0)
    store, counts = method.store(where), []
    store.append(part(x, slice(0, 40)))  # short enough to stay whole
    for at in range(40, 100):
        store.append(part(x, slice(at, at + 1)))
        counts.append(store.read()[0].shape[1])
    expected = judged_by_hand(method, x, where, 40)
    assert torch.equal(store.read()[0], x.keys[:, expected]) and torch.equal(store.read()[1], x.values[:, expected])
    assert set(range(40)) | set(range(80, 100)) <= set(expected)
    assert len(expected) < 100 and sum(now <= before for before, now in pairwise(counts)) == 6


def test_the_deeper_the_layer_the_fewer_decoded_tokens_stay_and_the_sums_are_counted():
    method, kept = PyramidInfer(exceed_length_to_compress=8, recent_ratio=0.1, gen_decay_ratio=0.0), []
    for index in range(4):
        store = method.store(layer(index, torch.float32))
        for start, stop in ((0, 40), (40, 43), (43, 90)):
            store.append(part(tokens(90), slice(start, stop)))
        kept.append(store.read()[0].shape[1])
        assert store.nbytes() == 2 * 2 * kept[-1] * 16 * 4 + 2 * store.sums.shape[1] * 4
    assert kept == sorted(kept, reverse=True) and kept[0] < 90 and kept[3] < kept[0]


def test_short_prompts_stay_whole():
    assert PyramidInfer().kept(tokens(60), layer(3)).keys.shape[1] == 60


def test_knobs_that_contradict_are_refused():
    wrong = {"recent_ratio": 1.2, "prefill_decay_ratio": -0.1, "prefill_decay_strategy": "step"}
    wrong |= {"gen_decay_strategy": "step", "gen_compress_ratio": 2.0, "exceed_length_to_compress": 0}
    for knobs in ({name: value} for name, value in wrong.items()):
        with pytest.raises(ValueError, match="expected|positive"):
            PyramidInfer(**knobs)
