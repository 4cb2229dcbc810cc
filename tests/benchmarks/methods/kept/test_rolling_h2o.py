import pytest
import torch

from benchmarks.methods.harness.interface import part
from benchmarks.methods.kept.h2o import H2O
from benchmarks.methods.kept.rolling_h2o import RollingH2O
from tests.benchmarks.methods.stores import layer, tokens

METHOD = RollingH2O(hh_size=12, recent_size=8)


def test_a_prompt_is_cut_as_by_the_one_that_does_not_roll():
    x, store = tokens(64), METHOD.store(layer(dtype=torch.float32))
    store.append(x)
    kept = H2O(max_capacity_prompts=20, window_size=8).kept(x, layer())
    assert torch.equal(store.read()[0], kept.keys) and torch.equal(store.read()[1], kept.values)


def test_bytes_stay_the_same_while_decoding():
    x, store = tokens(64), METHOD.store(layer(dtype=torch.float16))
    store.append(part(x, slice(0, 40)))
    for at in range(40, 64):
        store.append(part(x, slice(at, at + 1)))
        assert store.nbytes() == 20 * 2 * (2 * 16 * 2 + 4)  # keys, values and a sum, of each KV head
        assert torch.equal(store.read()[0][:, -8:], x.keys[:, at - 7 : at + 1].half())


def test_heavy_hitters_are_those_of_all_queries_since_they_came():
    """Sums by hand, in which a dropped token comes back no more."""
    x, where, store = tokens(50), layer(dtype=torch.float32), METHOD.store(layer(dtype=torch.float32))
    kept = [list(range(30)), list(range(30))]
    received = torch.zeros(2, 50)
    for stop in range(30, 51):
        new = slice(0, 30) if stop == 30 else slice(stop - 1, stop)
        store.append(part(x, new))
        for head in range(2):
            kept[head] += [] if stop == 30 else [stop - 1]
            for at in range(new.start, new.stop):
                seen = [place for place in kept[head] if place <= at]
                paid = (x.queries[2 * head : 2 * head + 2, at] @ x.keys[head, seen].T * where.scale).softmax(-1).mean(0)
                received[head, seen] += paid
            old = sorted(kept[head][:-8], key=lambda place: received[head, place])[-12:]
            kept[head] = [*sorted(old), *kept[head][-8:]]
            assert torch.equal(store.read()[0][head], x.keys[head, kept[head]])


def test_nothing_is_dropped_before_the_cache_is_full():
    x, store = tokens(20), METHOD.store(layer(dtype=torch.float32))
    for start, stop in ((0, 5), (5, 19), (19, 20)):
        store.append(part(x, slice(start, stop)))
    assert torch.equal(store.read()[0], x.keys)


def test_sizes_that_are_not_positive_are_refused():
    for knobs in ({"hh_size": 0}, {"recent_size": 0}):
        with pytest.raises(ValueError, match="positive"):
            RollingH2O(**knobs)
