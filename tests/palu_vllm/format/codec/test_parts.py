"""Devices hold whole groups of KV heads, and together all of them."""

import pytest
import torch

from palu_vllm.format.codec.parts import part
from palu_vllm.kernels.codec.reference import encode_tokens
from tests.support.codecs.models import random_layer

FOUR = ((32, 4), (32, 3))


def test_parts_store_what_the_whole_stores():
    codec = random_layer(4, 32, 2, FOUR, FOUR, seed=0)
    key, value, positions = torch.randn(9, 4, 32), torch.randn(9, 4, 32), torch.arange(9)
    whole = encode_tokens(codec, key, value, positions)
    parts = [
        encode_tokens(part(codec, number, 2), key[:, 2 * number :][:, :2], value[:, 2 * number :][:, :2], positions)
        for number in range(2)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_one_part_is_the_whole():
    codec = random_layer(4, 32, 2, FOUR, FOUR, seed=0)
    assert part(codec, 0, 1) is codec


def test_a_group_is_not_cut():
    codec = random_layer(4, 32, 2, FOUR, FOUR, seed=0)
    with pytest.raises(ValueError, match=r"2 groups of KV heads into 4 parts; the largest number of parts .* is 2\."):
        part(codec, 0, 4)
