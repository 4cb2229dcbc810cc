"""Tiles fit the shared memory of a chip."""

import pytest

from benchmarks.kernels.codec_layers import CODEC_LAYERS
from benchmarks.kernels.gpus import CHIPS
from palu_vllm.kernels.gpu.codec.layout import column_count
from palu_vllm.kernels.gpu.codec.plan import codec_tiling, shared_bytes


@pytest.mark.parametrize("name", CODEC_LAYERS)
@pytest.mark.parametrize("arch", CHIPS)
def test_tiles_fit_the_chip(arch, name):
    slot, device = CODEC_LAYERS[name].codec().slot, CHIPS[arch]
    columns, tokens = column_count(slot.key) + column_count(slot.value), codec_tiling(slot, 2, device).tokens
    assert shared_bytes(columns, tokens, 2) <= device.shared_memory
    assert tokens == 64 or shared_bytes(columns, 2 * tokens, 2) > device.shared_memory
