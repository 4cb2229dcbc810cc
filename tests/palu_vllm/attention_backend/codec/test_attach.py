"""Which layer gets which part of a codec; served models: ``tests/integration/codec``."""

import pickle

import pytest
import torch
from vllm.utils.torch_utils import set_default_torch_dtype

from palu_vllm.attention_backend.codec import attach
from palu_vllm.attention_backend.codec.attach import attaching, layer_number, layer_of_cache, own_part
from palu_vllm.attention_backend.codec.impl import CodecImpl
from palu_vllm.kernels.interface import PagedBatch
from tests.support.codecs.models import random_layer

PER_HEAD, JOINT = ((32, 4),), ((64, 4),)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.layers.3.self_attn.attn", 3),
        ("language_model.model.layers.12.self_attn.attn", 12),
        ("transformer.h.0.attn.attn", 0),
        ("encoder.attn", -1),
        ("blocks.1.experts.2.attn", -1),
    ],
)
def test_the_number_of_a_layer_is_the_only_one_in_its_name(name, number):
    assert layer_number(name) == number


def test_a_layer_that_shares_a_cache_has_its_targets_number():
    own = {"prefix": "model.layers.3.self_attn.attn"}
    assert layer_of_cache(own) == 3
    assert layer_of_cache(own | {"kv_sharing_target_layer_name": "model.layers.1.self_attn.attn"}) == 1


@pytest.fixture
def devices(monkeypatch):
    """``devices(count, rank)``: this process is one of several."""

    def be(count: int, rank: int) -> None:
        monkeypatch.setattr(attach, "get_tensor_model_parallel_world_size", lambda: count)
        monkeypatch.setattr(attach, "get_tensor_model_parallel_rank", lambda: rank)

    return be


@pytest.mark.parametrize(
    ("count", "rank", "heads", "own"),
    [(1, 0, 4, [0, 1, 2, 3]), (2, 1, 2, [2, 3]), (4, 2, 1, [2]), (8, 5, 1, [2]), (2, 1, 4, [0, 1, 2, 3])],
    ids=["alone", "two", "four", "heads are copied", "attention is not split"],
)
def test_a_device_has_the_codec_of_its_heads(devices, count, rank, heads, own):
    codec = random_layer(4, 32, 4, PER_HEAD, PER_HEAD, seed=0)
    devices(count, rank)
    found = own_part(codec, {"num_heads": 8, "num_kv_heads": heads, "head_size": 32}, "layer 0")
    assert torch.equal(found.key.sink, codec.key.sink[own]) and torch.equal(
        found.value.decoder, codec.value.decoder[own]
    )


@pytest.mark.parametrize(("heads", "width"), [(3, 32), (8, 32), (4, 64), (1, 32)])
def test_other_heads_are_refused(devices, heads, width):
    devices(2, 0)
    with pytest.raises(ValueError, match="make a codec of this model with palu-calibrate."):
        own_part(
            random_layer(4, 32, 2, JOINT, JOINT, seed=0),
            {"num_heads": 24, "num_kv_heads": heads, "head_size": width},
            "layer 0",
        )


def test_settings_attach_where_they_arrive(monkeypatch):
    """As vLLM's configuration travels to the process of an engine."""
    arrived = []
    monkeypatch.setattr(attach, "attach", lambda: arrived.append(True))
    sent = pickle.dumps(attaching({"codec": "OUT"}))
    assert pickle.loads(sent) == {"codec": "OUT"} and len(arrived) == 2


def impl(**changes) -> CodecImpl:
    given = dict(num_heads=8, head_size=32, scale=1.0, num_kv_heads=4, alibi_slopes=None, sliding_window=None,
                 kv_cache_dtype="auto", logits_soft_cap=None, attn_type="decoder",
                 kv_sharing_target_layer_name=None) | changes  # fmt: skip
    with set_default_torch_dtype(torch.float32):  # as files hold them
        codec = random_layer(4, 32, 4, PER_HEAD, PER_HEAD, seed=0)
    return CodecImpl(**given, codec=codec)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alibi_slopes": [0.5] * 8}, "ALiBi"),
        ({"attn_type": "encoder_only"}, "the type encoder_only"),
        ({"kv_cache_dtype": "fp8"}, "a cache of fp8"),
        ({"chunk_lookback": 1}, "chunk_lookback"),
    ],
)
def test_attention_that_codecs_do_not_compute_is_refused(changes, named):
    with pytest.raises(ValueError, match=f"a KV codec does not serve attention with {named}; serve"):
        impl(**changes)


def test_soft_caps_sinks_and_windows_are_settings():
    made = impl(logits_soft_cap=50.0, sinks=torch.zeros(8), sliding_window=24)
    made.process_weights_after_loading(torch.float32)
    settings = made.attention.settings
    assert (settings.soft_cap, settings.sliding_window, len(settings.sinks)) == (50.0, 24, 8)


def test_a_codec_is_float32_in_a_model_of_bfloat16():
    """vLLM builds and finishes a model's layers while its dtype is torch's default."""
    with set_default_torch_dtype(torch.bfloat16):
        made = impl()
        made.process_weights_after_loading(torch.bfloat16)
    plain = impl()
    plain.process_weights_after_loading(torch.float32)
    key, value, query = (torch.randn(5, heads, 32).bfloat16() for heads in (4, 4, 8))
    batch = PagedBatch(*(torch.tensor(each, dtype=torch.int32) for each in ([[0]], [5], [0, 5])), 5, 5)
    found = []
    for each in (made, plain):
        cache = torch.zeros(1, 4, 16, each.codec.slot.bytes, dtype=torch.uint8)
        each.attention.store(key, value, torch.arange(5), cache, torch.arange(5))
        out = torch.empty(5, 8, 32)
        each.attention.attend(query, cache, batch, out)
        found.append((cache, out))
    (cache, out), (expected_cache, expected) = found
    assert torch.equal(cache, expected_cache) and torch.equal(out, expected)
