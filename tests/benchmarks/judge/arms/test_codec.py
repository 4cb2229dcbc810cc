"""The codec's arm gives back what the slots hold."""

import torch

from benchmarks.judge.arms.arm import Heads, Layer
from benchmarks.judge.arms.codec import CodecArm, read_layer
from palu_vllm.format.codec.file import Codec, save_codec
from palu_vllm.format.kv import KV
from palu_vllm.kernels.codec.reference import encode_tokens
from tests.support.codecs.layers import decoded, layer_codec

TIERS = ((16, 8), (16, 4), (32, 3))
SIZES = Heads(3, 2, 32)


def test_keys_and_values_are_those_of_the_slots():
    codec = layer_codec(TIERS, TIERS)
    whole = KV(*torch.randn(2, 2, 2, 40, 32, generator=torch.Generator().manual_seed(3)))
    whole.key[:, :, 0] = codec.key.sink
    positions = torch.arange(40)
    found = read_layer(codec, whole)
    for row in range(2):
        key, value = (x[row].transpose(0, 1) for x in whole)
        slots = encode_tokens(codec, key, value, positions)
        for side, expected in enumerate(decoded(codec, slots, positions)):
            torch.testing.assert_close(found[side][row].transpose(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_in_it_stay_dense(tmp_path):
    codec = Codec({1: layer_codec(TIERS, TIERS)}, {"name": "tiny", "digest": "none"})
    save_codec(tmp_path, codec)
    arm, whole = CodecArm("tiny", tmp_path), KV(*torch.randn(2, 1, 2, 5, 32))
    assert arm.read_back(whole, Layer(0, 3)) is whole
    assert not torch.equal(arm.read_back(whole, Layer(1, 3)).key, whole.key)
    assert arm.bytes_per_token(SIZES, 5) == codec.bytes_per_token + SIZES.dense_bytes * 2 / 3
