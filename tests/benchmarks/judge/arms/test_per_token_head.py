"""int4 and int8 per token and head: the numbers of vLLM's own store kernels, run in Triton's interpreter."""

from functools import partial

import pytest
import torch
from vllm.v1.kv_cache_interface import KVQuantMode

from benchmarks.judge.arms.arm import Heads
from benchmarks.judge.arms.per_token_head import PerTokenHead, int4, int8
from tests.benchmarks.judge.arms.cases import heads, relative_error
from tests.support.oracles.vllm_kernels import with_triton

OPS = "vllm.v1.attention.ops"
TOKENS, BLOCK = 7, 4


def cached(store, head_dim: int, packed: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], ...]:
    """Codes and scales that a kernel of vLLM writes, ``[tokens, kv_heads, ...]``, and what it was given."""
    given = [x[0].transpose(0, 1).contiguous() for x in heads(TOKENS, head_dim)]
    codes = [torch.zeros(2, BLOCK, 3, head_dim // packed, dtype=dtype) for _ in given]
    scales = [torch.zeros(2, BLOCK, 3) for _ in given]
    store(*given, *codes, slot_mapping=torch.arange(TOKENS), k_scale_cache=scales[0], v_scale_cache=scales[1])
    return given, [x.flatten(0, 1)[:TOKENS] for x in codes], [x.flatten(0, 1)[:TOKENS] for x in scales]


@pytest.mark.parametrize("head_dim", [64, 96])
def test_int4_is_what_vllm_stores_and_reads(head_dim):
    vllm = with_triton(f"{OPS}.int4_per_token_head")
    given, codes, scales = cached(vllm.reshape_and_cache_int4, head_dim, 2, torch.uint8)
    for exact, code, scale in zip(given, codes, scales, strict=True):
        numbers = torch.stack([code & 15, code >> 4], -1).flatten(-2).float()
        zero = (scale.view(torch.int32) & 15).float()[..., None]
        step = (scale.view(torch.int32) & -16).view(torch.float32)[..., None]
        norm = head_dim & -head_dim
        read = vllm.single_rht((numbers - zero) * step, inverse=True) / norm
        torch.testing.assert_close(int4(exact), read, rtol=1e-4, atol=1e-4)


def test_int8_is_what_vllm_stores():
    vllm = with_triton(f"{OPS}.triton_reshape_and_cache_flash")
    store = partial(
        vllm.triton_reshape_and_cache_flash_per_token_head_quant, kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD
    )
    given, codes, scales = cached(store, 64, 1, torch.int8)
    for exact, code, scale in zip(given, codes, scales, strict=True):
        torch.testing.assert_close(int8(exact), code.float() * scale[..., None], rtol=1e-5, atol=1e-5)


def test_mixing_is_what_saves_a_head_with_a_large_channel():
    key = torch.randn(1, 1, 50, 64, generator=torch.Generator().manual_seed(0))
    key[..., 3] *= 30
    plain = (key.amax(-1, keepdim=True) - key.amin(-1, keepdim=True)) / 15
    assert relative_error(int4(key), key) < 0.25 * relative_error((key / plain).round() * plain, key)


def test_bytes():
    heads = Heads(1, 1, 64)
    assert PerTokenHead(4).bytes_per_token(heads, 1) == 2 * (32 + 4)
    assert PerTokenHead(8).bytes_per_token(heads, 1) == 2 * (64 + 4)
