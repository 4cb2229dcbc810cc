"""KVarN: even deviations, exact sinks and unfinished tiles, and the record of its pull request."""

import pytest
import torch

from benchmarks.judge.arms.arm import Heads
from benchmarks.judge.arms.kvarn import KVarN, balanced, coded, imbalance
from tests.benchmarks.judge.arms.cases import MIDDLE, heads, relative_error


def uneven() -> torch.Tensor:
    """Tiles whose rows and columns have deviations of many sizes, none too small for the least scale."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 64, 128, generator=generator) * torch.logspace(0, 1.3, 64)[:, None] * torch.logspace(1, 0, 128)
    )


def test_scales_even_out_rows_and_columns():
    tiles = uneven()
    rows, columns = balanced(tiles, rounds=8)
    assert (imbalance(tiles) > 25).all()
    assert (imbalance(tiles / rows / columns) < 4).all()


def test_even_tiles_lose_less():
    tiles = uneven()
    low, high = tiles.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    plain = ((tiles - low) / step).round() * step + low

    def by_token(x: torch.Tensor) -> torch.Tensor:
        return ((x - tiles).square().sum(1) / tiles.square().sum(1)).mean()

    assert by_token(coded(tiles, 4, rounds=8)) < 0.5 * by_token(plain)


def test_sinks_and_the_tile_at_work_are_exact():
    exact = KVarN(4, 2).exact(300, torch.device("cpu")).key
    assert exact[:, :128].all()
    assert not exact[256:, 128:256].any() and exact[255, 128:256].all()
    assert exact[299, 256:300].all()


def test_what_is_shorter_than_a_tile_is_not_coded():
    whole = heads(100)
    assert all(torch.equal(*pair) for pair in zip(KVarN(4, 2).read_back(whole, MIDDLE), whole, strict=True))


def test_bytes_are_those_of_the_record():
    """Per tile and head at head_dim 128: 26,880 bytes at 256 and k4v2 are the record of a public port."""
    assert KVarN(4, 2).head_bytes(256) * 128 == 26_880
    heads = Heads(1, 1, 64)
    at_768 = KVarN(4, 2).bytes_per_token(heads, 768)
    assert at_768 == pytest.approx((640 * KVarN(4, 2).head_bytes(64) + 128 * 256) / 768)


def test_more_bits_are_nearer():
    whole = heads(256)
    errors = [relative_error(KVarN(4, bits).read_back(whole, MIDDLE).value, whole.value) for bits in (4, 2)]
    assert errors[0] < 0.1 * errors[1]
