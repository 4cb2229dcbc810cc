"""What all arms share: shapes, bytes, and tokens that do not see what comes after them."""

import pytest
import torch

from benchmarks.judge.arms.arm import CacheArm, Dense, Heads
from benchmarks.judge.registry import RIVALS
from tests.benchmarks.judge.arms.cases import MIDDLE, heads, relative_error

HEADS = Heads(num_layers=30, num_kv_heads=3, head_dim=64)
ARMS = [arm for arm in RIVALS if isinstance(arm, CacheArm)]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_shapes_stay_and_numbers_are_near(arm):
    whole = heads(batch=2)
    for found, exact in zip(arm.read_back(whole, MIDDLE), whole, strict=True):
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert 0 < relative_error(found, exact) < 0.25


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_what_a_query_sees_does_not_depend_on_later_tokens(arm):
    """Either it is read back from tokens up to the query alone, or it is exact for that query."""
    long, cut = heads(tokens=300), 200
    short = type(long)(*(x[:, :, :cut] for x in long))
    found, alone = arm.read_back(long, MIDDLE), arm.read_back(short, MIDDLE)
    exact = arm.exact(300, torch.device("cpu"))
    for side in range(2):
        coded = torch.ones(cut, dtype=torch.bool) if exact is None else ~exact[side][cut - 1, :cut]
        assert torch.equal(found[side][:, :, :cut][:, :, coded], alone[side][:, :, coded])


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_fewer_bytes_than_dense_and_no_more_the_longer(arm):
    short, long = (arm.bytes_per_token(HEADS, tokens) for tokens in (768, 32768))
    assert long <= short < HEADS.dense_bytes


def test_dense_bytes():
    assert HEADS.dense_bytes == 2 * 2 * 30 * 3 * 64 == Dense().bytes_per_token(HEADS, 1)


def test_names_tell_arms_apart():
    assert len({arm.name for arm in RIVALS}) == len(RIVALS)
