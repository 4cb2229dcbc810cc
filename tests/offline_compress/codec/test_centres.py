"""The centre finds where RoPE turns the mean, whichever way a model places pairs, and leaves the rest as covariance."""

import pytest
import torch

from offline_compress.codec.centres import key_centre
from offline_compress.codec.moments import LayerMoments, SideMoments
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.format.kv import KV

FREQUENCIES = {"slow": 0.02 ** torch.linspace(0.5, 1.5, 4).double(), "fast": 0.5 ** torch.arange(1, 5).double()}
DIM, HEADS, TOKENS = 12, 2, 4096


def moments_of(keys, positions):
    found = LayerMoments(HEADS, DIM, DIM, 4, KV(*(SideMoments.zeros(1, HEADS * DIM) for _ in range(2))))
    found.add(keys.reshape(len(keys), 1, -1), keys.reshape(len(keys), 1, -1),
              {name: features(each, positions // BLOCK) for name, each in FREQUENCIES.items()})  # fmt: skip
    return found


def turned(mean, positions, frequencies, interleaved):
    """``mean [heads, dim]`` turned by RoPE: 8 numbers of 12 turn."""
    angles = positions[:, None].double() * frequencies
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    out = mean.double().expand(len(positions), -1, -1).clone()
    first, second = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    out[..., first] = mean[:, first] * cos - mean[:, second] * sin
    out[..., second] = mean[:, second] * cos + mean[:, first] * sin
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", FREQUENCIES)
def test_finds_frequencies_places_and_mean(name, interleaved):
    positions = torch.arange(TOKENS)
    mean = 5 * torch.randn(HEADS, DIM).double()
    noise = 0.3 * torch.randn(TOKENS, HEADS, DIM).double()
    keys = turned(mean, positions, FREQUENCIES[name], interleaved) + noise
    found = key_centre(moments_of(keys, positions), FREQUENCIES)
    assert torch.equal(found.frequencies[:4], FREQUENCIES[name]) and found.frequencies[4] == 0
    pairs = [0, 0, 1, 1, 2, 2, 3, 3] if interleaved else [0, 1, 2, 3] * 2
    assert found.frequency_of.tolist() == [*pairs, 4, 4, 4, 4]
    torch.testing.assert_close(found.cos, mean, rtol=0, atol=0.15)
    residual = keys - _centre(found, positions)
    direct = residual.flatten(1).T @ residual.flatten(1) / TOKENS
    torch.testing.assert_close(found.covariance[0], direct, rtol=1e-4, atol=1e-4)


def _centre(found, positions):
    cos, sin = features(found.frequencies, positions // BLOCK).double().chunk(2, -1)
    return found.cos * cos[:, None, found.frequency_of] + found.sin * sin[:, None, found.frequency_of]


def test_a_model_that_turns_nothing_has_a_mean():
    keys = torch.randn(TOKENS, HEADS, DIM).double() + torch.arange(DIM)
    found = key_centre(moments_of(keys, torch.arange(TOKENS)), {})
    torch.testing.assert_close(found.cos, keys.mean(0), rtol=0, atol=1e-9)
    assert found.frequencies.tolist() == [0.0] and not found.sin.any()
    torch.testing.assert_close(found.covariance[0], keys.flatten(1).T.cov(correction=0), rtol=1e-6, atol=1e-6)
