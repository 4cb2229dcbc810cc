"""Several groups at a time: everything is done, in order, and to the same bytes."""

import threading
import time

import pytest
import torch

from offline_compress import compress
from offline_compress.factors.all_groups import decompose, discarded_energy, grams_of
from offline_compress.factors.decomposition import damp
from offline_compress.run.workers import in_order, one_thread, working
from palu_vllm.format.checkpoint import SINGLE


@pytest.fixture(autouse=True)
def threads_can_be_set(monkeypatch):
    """An engine of vLLM on CPU that ran in this process has replaced the function by one that does nothing."""
    monkeypatch.setattr(torch, "set_num_threads", torch._C.set_num_threads)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_results_come_in_order(number):
    def slow_at_first(value: int) -> int:
        time.sleep(0.01 * (4 - value))
        return value * value

    with working(number):
        assert list(in_order(slow_at_first, range(4))) == [0, 1, 4, 9]


def test_as_many_at_a_time_as_there_are_workers():
    together = threading.Barrier(3)
    with working(3):
        assert len({*in_order(lambda _: (together.wait(), threading.get_ident())[1], range(3))}) == 3


@pytest.mark.parametrize("number", [1, 3])
def test_every_worker_computes_on_one_thread_and_the_rest_as_before(number):
    torch.set_num_threads(2)
    with working(number):
        assert list(in_order(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), working(number):
        list(in_order(lambda value: 1 // value, range(2)))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_for_any_number_of_workers_and_threads(weighted):
    weight, inputs = torch.randn(4 * 160, 200), torch.randn(300, 200).double()
    moment, rows = damp(inputs.T @ inputs), torch.randn(4, 160, 160).double()
    metric = rows.mT @ rows if weighted else None
    found = []
    for number, threads in ((1, 1), (1, 2), (2, 2), (4, 1), (9, 2)):
        torch.set_num_threads(threads)
        with working(number):
            grams = grams_of(weight, 4, moment)
            factors = decompose(weight, 70, grams, metric)
            found.append((factors.down, factors.up, discarded_energy(grams, metric)))
    assert all(torch.equal(*pair) for other in found for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("options", [{"objective": "whiten", "search": "uniform"}, {"objective": "weighted"}])
def test_the_same_checkpoint_for_any_number_of_workers(tmp_path, dense, text, options):
    options = options | {"calib_data": text, "calib_samples": 3, "calib_seqlen": 40, "group_size": 1}
    for number in (1, 2, 4):
        compress(dense("llama"), tmp_path / str(number), workers=number, **options)
    written = {(tmp_path / str(number) / SINGLE).read_bytes() for number in (1, 2, 4)}
    assert len(written) == 1


def test_the_setting_of_threads_comes_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), one_thread():
        raise RuntimeError
    assert torch.get_num_threads() == before
