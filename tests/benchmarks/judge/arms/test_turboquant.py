"""TurboQuant: the numbers of vLLM's own store and read kernels in Triton's interpreter, its levels and its layers."""

import pytest
import torch
from vllm.model_executor.layers.quantization.turboquant.centroids import get_centroids
from vllm.model_executor.layers.quantization.turboquant.config import TQ_PRESETS, TurboQuantConfig

from benchmarks.judge.arms.arm import Heads, Layer
from benchmarks.judge.arms.mixing import hadamard
from benchmarks.judge.arms.turboquant import TurboQuant, levels
from benchmarks.judge.registry import RIVALS
from palu_vllm.format.kv import KV
from tests.benchmarks.judge.arms.cases import MIDDLE, heads
from tests.support.oracles.vllm_kernels import with_triton

PRESETS = [arm for arm in RIVALS if isinstance(arm, TurboQuant)]
TOKENS, BLOCK, DIM = 6, 4, 64


def by_vllm(arm: TurboQuant, whole: KV[torch.Tensor]) -> KV[torch.Tensor]:
    """Stored and read by vLLM's kernels, ``[1, kv_heads, tokens, head_dim]``; keys mixed back as vLLM does."""
    config = TurboQuantConfig.from_cache_dtype(arm.name, DIM)
    key, value = (x[0].transpose(0, 1).contiguous() for x in whole)
    table = get_centroids(DIM, config.mse_bits)
    cache = torch.zeros(2, BLOCK, 3, config.slot_size_aligned, dtype=torch.uint8)
    with_triton("vllm.v1.attention.ops.triton_turboquant_store").triton_turboquant_store(
        key, value, cache, torch.arange(TOKENS), hadamard(DIM), (table[1:] + table[:-1]) / 2,
        config.mse_bits, config.key_packed_size, config.value_quant_bits,
    )  # fmt: skip
    keys, values = torch.zeros(2, 1, 3, TOKENS, DIM, dtype=torch.float16)
    with_triton("vllm.v1.attention.ops.triton_turboquant_decode")._tq_full_dequant_kv[(TOKENS, 3)](
        cache, torch.arange(2)[None], table, keys, values, *keys.stride()[:3], *values.stride()[:3],
        *cache.stride()[:3], 2, HEAD_DIM=DIM, BLOCK_SIZE=BLOCK, NUM_KV_HEADS=3,
        MSE_BYTES=DIM * config.mse_bits // 8, KPS=config.key_packed_size, VQB=config.value_quant_bits,
        VAL_DATA_BYTES=DIM * config.value_quant_bits // 8, MSE_BITS=config.mse_bits, KEY_FP8=0, BLOCK_D=DIM,
        NORM_CORRECTION=int(config.norm_correction),
    )  # fmt: skip
    return KV(keys.float() @ hadamard(DIM), values.float())


@pytest.mark.parametrize("arm", PRESETS, ids=lambda arm: arm.name)
def test_it_is_what_vllm_stores_and_reads(arm):
    whole = heads(TOKENS, DIM)
    for found, expected, exact in zip(arm.read_back(whole, MIDDLE), by_vllm(arm, whole), whole, strict=True):
        # the kernel gives its answer in float16
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * exact.abs().max().item())


@pytest.mark.parametrize("bits", [3, 4])
def test_levels_are_vllms(bits):
    torch.testing.assert_close(levels(64, bits), get_centroids(64, bits), rtol=1e-4, atol=1e-6)


def test_presets_are_vllms():
    for arm in PRESETS:
        preset = TQ_PRESETS[arm.name]
        assert (arm.key_bits, arm.value_bits, arm.norm_correction) == tuple(preset.values())
        assert arm.head_bytes(DIM) == TurboQuantConfig.from_cache_dtype(arm.name, DIM).slot_size_aligned


def test_boundary_layers_stay_as_they_are():
    arm, whole = PRESETS[0], heads(TOKENS)
    skipped = [index for index in range(30) if arm.read_back(whole, Layer(index, 30)) is whole]
    assert skipped == [0, 1, 28, 29]
    sizes = Heads(30, 3, DIM)
    assert arm.bytes_per_token(sizes, 1) == pytest.approx(26 * 3 * 70 + 4 * 3 * 256)


def test_norm_correction_gives_keys_their_length_back():
    whole = heads(200)
    found = PRESETS[-1].read_back(whole, MIDDLE).key
    torch.testing.assert_close(found.norm(dim=-1), whole.key.norm(dim=-1), rtol=1e-3, atol=0)
