"""fp8 and nvfp4: nearest numbers, saturated, and scales of sixteen."""

import pytest
import torch

from benchmarks.judge.arms.arm import Heads
from benchmarks.judge.arms.floats import DTYPES, Fp8, Nvfp4, nvfp4, saturated


@pytest.mark.parametrize("kind", DTYPES)
def test_numbers_of_the_kind_stay_and_others_go_to_the_nearest(kind):
    dtype = DTYPES[kind]
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    own = every[every.isfinite()]
    assert torch.equal(saturated(own, dtype), own)
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal((saturated(x, dtype) - x).abs(), (own[:, None] - x).abs().amin(0))
    assert saturated(torch.tensor([1e6, -1e6]), dtype).abs().eq(torch.finfo(dtype).max).all()


def test_nvfp4_takes_the_nearest_of_its_levels():
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    blocks, found = x.unflatten(-1, (-1, 16)), nvfp4(x).unflatten(-1, (-1, 16))
    scale = (blocks.abs().amax(-1, keepdim=True) / 6).to(torch.float8_e4m3fn).float()
    both = torch.cat([-levels, levels])
    nearest = (both * scale[..., None] - blocks.clamp(-6 * scale, 6 * scale)[..., None]).abs().amin(-1)
    torch.testing.assert_close((found - blocks.clamp(-6 * scale, 6 * scale)).abs(), nearest, rtol=0, atol=1e-6)


def test_bytes():
    heads = Heads(2, 1, 64)
    assert Fp8("fp8_e4m3").bytes_per_token(heads, 1) == 2 * 128
    assert Nvfp4().bytes_per_token(heads, 1) == 2 * 2 * 36
