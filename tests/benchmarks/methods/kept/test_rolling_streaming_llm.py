import pytest
import torch

from benchmarks.methods.harness.interface import part
from benchmarks.methods.harness.rotary import rotate, unrotate
from benchmarks.methods.kept.rolling_streaming_llm import RollingStreamingLLM
from tests.benchmarks.methods.stores import layer, tokens


def streamed(method, x, steps):
    store, start = method.store(layer(dtype=torch.float32)), 0
    for count in steps:
        store.append(part(x, slice(start, start + count)))
        start += count
    return store


@pytest.mark.parametrize("steps", [[50], [3, 7, 40], [30] + [1] * 20])
def test_sinks_stand_right_before_the_window_however_tokens_came(steps):
    x = tokens(50)
    keys, values = streamed(RollingStreamingLLM(start_size=4, recent_size=10), x, steps).read()
    assert keys.shape[1] == 14
    torch.testing.assert_close(keys[:, 4:], x.keys[:, 40:])
    moved = rotate(unrotate(x.keys[:, :4], torch.arange(4), layer()), torch.arange(36, 40), layer())
    torch.testing.assert_close(keys[:, :4], moved, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, torch.cat([x.values[:, :4], x.values[:, 40:]], 1))


def test_without_shift_sinks_stay_where_they_are():
    x = tokens(50)
    method = RollingStreamingLLM(start_size=4, recent_size=10, enable_pos_shift=False)
    torch.testing.assert_close(streamed(method, x, [50]).read()[0][:, :4], x.keys[:, :4])


def test_nothing_is_lost_or_moved_before_the_cache_is_full():
    x = tokens(14)
    keys, values = streamed(RollingStreamingLLM(start_size=4, recent_size=10), x, [2, 12]).read()
    torch.testing.assert_close(keys, x.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, x.values)


def test_bytes_stop_growing():
    store = streamed(RollingStreamingLLM(start_size=4, recent_size=10), tokens(50), [1] * 50)
    assert store.nbytes() == 2 * 14 * 2 * 16 * 4


def test_sizes_that_are_not_positive_are_refused():
    for knobs in ({"start_size": 0}, {"recent_size": 0}):
        with pytest.raises(ValueError, match="positive"):
            RollingStreamingLLM(**knobs)
