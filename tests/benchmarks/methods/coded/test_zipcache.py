import pytest
import torch
from kvpress import ObservedAttentionPress

from benchmarks.methods.coded.zipcache import ZipCache, saliency
from benchmarks.methods.harness.interface import part
from tests.benchmarks.methods.kept.test_pruning import attentions, module
from tests.benchmarks.methods.stores import layer, tokens


def test_saliency_is_kvpress_normalised_attention():
    x = tokens(40)
    theirs = ObservedAttentionPress().score(module(), None, x.keys[None], x.values[None], attentions(x), {})
    torch.testing.assert_close(saliency(x, 40, 0.25), theirs[0].mean(0))


def test_salient_tokens_are_closer():
    x = tokens(60)
    store = ZipCache(unimportant_ratio=0.5).store(layer())
    store.append(x)
    order = saliency(x, 60, 0.25).argsort(descending=True, stable=True)
    keys, values = store.read()
    for read, true in ((keys, x.keys), (values, x.values)):
        kept, others = order[:30].sort().values, order[30:].sort().values
        salient = (read[:, :30] - true[:, kept]).square().mean()
        assert salient < (read[:, 30:] - true[:, others]).square().mean() / 4


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_bytes_are_codes_scales_and_channel_scales(ratio):
    store = ZipCache(unimportant_ratio=ratio).store(layer())
    store.append(tokens(40))
    expected = 0
    for count, bits in ((round((1 - ratio) * 40), 4), (40 - round((1 - ratio) * 40), 2)):
        if count:
            expected += 32 * (-(-count * bits // 8) + 4) + count * (32 * bits // 8 + 4) + 32 * 2
    assert store.nbytes() == expected


def test_streaming_gap_works_across_steps():
    x, store = tokens(60), ZipCache(streaming_gap=6).store(layer())
    store.append(part(x, slice(0, 40)))
    for done, at in enumerate(range(40, 60), start=1):
        store.append(part(x, slice(at, at + 1)))
        assert store.buffer.keys.shape[1] == done % 6 and len(store.chunks) == 2 + 2 * (done // 6)
        assert store.read()[0].shape == (2, at + 1, 16)


def test_more_important_tokens_are_closer():
    """In all; the order of what is read is the store's own."""
    x, found = tokens(60), []
    for ratio in (1.0, 0.5, 0.0):
        method = ZipCache(unimportant_ratio=ratio)
        store = method.store(layer())
        store.append(x)
        order = saliency(x, 60, 0.25).argsort(descending=True, stable=True)
        important = round((1 - ratio) * 60)
        at = torch.cat([order[:important].sort().values, order[important:].sort().values])
        found.append((store.read()[1] - x.values[:, at]).square().mean().item())
    assert found[0] > found[1] > found[2]


def test_knobs_that_contradict_are_refused():
    for knobs in ({"unimportant_ratio": 1.1}, {"streaming_gap": 1}):
        with pytest.raises(ValueError, match="."):
            ZipCache(**knobs)
