"""Gives the attention layers of vLLM's own models the codec of the server.

vLLM internals used: ``Attention.__init__`` (wrapped, once a process). vLLM does not tell a backend which layer it
serves, and a CPU ignores the chosen backend. Until a backend is asked for with the layer's name.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.v1.attention.backend import AttentionType

from palu_vllm.attention_backend.codec.peers import tell_peers_apart
from palu_vllm.attention_backend.codec.served import served_codec
from palu_vllm.attention_backend.codec.weights import check_reloads
from palu_vllm.attention_backend.shared_specs import share_specs
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.parts import part


@functools.cache
def attach() -> None:
    """Once per process, before a model is built. Changes nothing for servers without a codec."""
    from vllm.model_executor.layers.attention import Attention  # heavy

    Attention.__init__ = with_codec(Attention.__init__)


class AttachingSettings(dict[str, Any]):
    """Settings of a server with a codec: where they arrive, in the process of an engine or a worker, they attach."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return attaching, (dict(self),)


def attaching(settings: Mapping[str, Any]) -> AttachingSettings:
    """The settings, once this process is attached."""
    attach()
    return AttachingSettings(settings)


def with_codec(init: Callable[..., None]) -> Callable[..., None]:
    """``Attention.__init__``, which chooses the codec's backend for the layers that the codec lists."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def made(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        codec = _codec_of(given)
        if codec is not None:
            if given.get("kv_sharing_target_layer_name"):
                share_specs()
            from palu_vllm.attention_backend.codec.backend import backend_of

            vllm_config = get_current_vllm_config()
            tell_peers_apart(vllm_config)
            check_reloads()
            longest = vllm_config.model_config.max_model_len
            backend = backend_of(codec.slot, codec.num_groups)
            kwargs |= {"attn_backend": backend, "codec": codec, "max_seq_len": longest}
        init(self, *args, **kwargs)
        if codec is not None:
            with contextlib.suppress(ImportError):  # without it vLLM compiles at the first request
                from palu_vllm.attention_backend.codec.warm_up import register

                register(self)

    return made


def _codec_of(given: Mapping[str, Any]) -> LayerCodec | None:
    """This device's part of the codec for a layer that is built with the arguments ``given``, None to leave it alone.

    A layer that reads the cache of an earlier one has that one's codec. Raises ValueError, one sentence.
    """
    codec = served_codec(get_current_vllm_config())
    if codec is None or given.get("attn_type", AttentionType.DECODER) != AttentionType.DECODER:
        return None
    name = given.get("prefix", "")
    layer = codec.layers.get(layer_of_cache(given))
    if layer is None:
        return None
    if given.get("attn_backend") is not None:
        raise ValueError(
            f"{name} is a {type(given['self']).__name__}, which a KV codec does not serve; "
            "make a codec without this layer."
        )
    return own_part(layer, given, name)


def layer_of_cache(given: Mapping[str, Any]) -> int:
    """The number of the layer whose cache a layer reads: that of its target where it shares one."""
    return layer_number(given.get("kv_sharing_target_layer_name") or given.get("prefix", ""))


def layer_number(name: str) -> int:
    """``model.layers.3.self_attn.attn`` is layer 3; -1 where a name has no number or several."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(numbers[0]) if len(numbers) == 1 else -1


def own_part(codec: LayerCodec, given: Mapping[str, Any], name: str) -> LayerCodec:
    """The codec of the KV heads that this device has of a layer. Raises ValueError where its heads are others."""
    heads = given.get("num_kv_heads") or given["num_heads"]
    dims = given["head_size"], given.get("head_size_v") or given["head_size"]
    devices, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    count, rest = divmod(codec.num_kv_heads, heads)
    if rest or count > devices or dims != (codec.key.sink.shape[1], codec.value.sink.shape[1]):
        raise ValueError(
            f"{name} has {heads} KV heads of {dims[0]} and {dims[1]} numbers on each of {devices} devices, its codec "
            f"{codec.num_kv_heads} heads of {codec.key.sink.shape[1]} and {codec.value.sink.shape[1]}; "
            "make a codec of this model with palu-calibrate."
        )
    return part(codec, rank * count // devices, count)
