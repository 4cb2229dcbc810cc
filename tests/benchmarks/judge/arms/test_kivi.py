"""KIVI: keys by channel, values by token, and a window of exact ones."""

import torch

from benchmarks.judge.arms.arm import Heads
from benchmarks.judge.arms.kivi import Kivi
from palu_vllm.format.kv import KV
from tests.benchmarks.judge.arms.cases import MIDDLE, heads


def test_a_large_channel_of_keys_costs_the_others_nothing():
    plain, loud = heads(), heads()
    loud.key[..., 5] *= 1000
    found = [Kivi(4).read_back(each, MIDDLE).key for each in (plain, loud)]
    others = torch.arange(64) != 5
    assert torch.equal(found[0][..., others], found[1][..., others])


def test_a_large_token_of_values_costs_the_others_nothing():
    plain, loud = heads(), heads()
    loud.value[:, :, 5] *= 1000
    found = [Kivi(4).read_back(each, MIDDLE).value for each in (plain, loud)]
    others = torch.arange(300) != 5
    assert torch.equal(found[0][:, :, others], found[1][:, :, others])


def test_steps_are_as_many_as_bits_allow():
    found = Kivi(2).read_back(KV(*(x[:, :, :32] for x in heads())), MIDDLE)
    assert max(len(row.unique()) for row in found.key[0, 0].T) <= 4
    assert max(len(group.unique()) for group in found.value[0, 0].reshape(-1, 32)) <= 4


def test_keys_wait_for_a_full_residual_and_values_for_newer_ones():
    exact = Kivi(4).exact(300, torch.device("cpu"))
    assert exact.key[299, 256:300].all() and not exact.key[299, :256].any()
    assert exact.key[127, :128].all()
    assert exact.value[299, 171:300].all() and not exact.value[299, :171].any()


def test_bytes():
    heads = Heads(1, 1, 64)
    coded = 64 * (0.5 + 4 / 32)
    assert Kivi(4).bytes_per_token(heads, 768) == ((768 * coded + 640 * coded) + 128 * 128) / 768
