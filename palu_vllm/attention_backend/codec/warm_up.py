"""Compiles the Triton kernels of a codec while a server starts, so that no request waits for them.

vLLM internals used: ``JitWarmupRegistry``, whose kernels a GPU worker compiles once there is a cache. Until backends
are asked to warm up. On a CPU nobody asks it.
"""

import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from vllm.model_executor.warmup.jit_warmup import JitWarmupRegistry, VllmJitKernel

from palu_vllm.format.latent_format import CodedSlot
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.gpu.codec.plan import MOST_QUERIES
from palu_vllm.kernels.interface import PagedBatch

MOST_THREADS = 8
CHUNK = MOST_QUERIES + 1  # queries of a request that is not decoded
CONTEXT = 256  # tokens of it


@dataclass(frozen=True)
class LayerLaunch:
    """A layer that stands for all layers with the same kernels."""

    slot: CodedSlot
    groups: tuple[int, int, int]  # groups, KV heads, query heads
    scored: tuple[int | None, float, bool]  # window, cap, whether there are sinks
    places: tuple[int, int]  # tokens of a block, frequencies of positions
    dtype: torch.dtype
    layer: torch.nn.Module = field(compare=False)


class CodecWarmUp(VllmJitKernel[LayerLaunch]):
    """Registered by every coded layer; launches each kind of kernel once, on nothing."""

    CompileKey = LayerLaunch

    def get_warmup_keys(self, *args: torch.nn.Module, **kwargs: object) -> list[LayerLaunch]:
        """Of the layer that was registered; none where its attention has no kernels to compile."""
        from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention  # needs Triton

        (layer,) = args
        attention = layer.impl.attention
        if not isinstance(attention, TritonCodecAttention):
            return []
        codec, settings = layer.impl.codec, attention.settings
        groups = codec.num_groups, codec.num_kv_heads, settings.num_heads
        places = layer.kv_cache.shape[2], len(codec.frequencies)
        return [LayerLaunch(codec.slot, groups, scored_by(settings), places, layer.dtype, layer)]

    def compile(self, compile_key: LayerLaunch) -> None:
        with torch.inference_mode(), own_device(compile_key.layer.kv_cache.device):
            launch(compile_key)

    def compile_many(self, compile_keys: Iterable[LayerLaunch]) -> None:
        keys = list(compile_keys)
        threads = 1 if os.environ.get("TRITON_INTERPRET") == "1" else min(MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.compile, keys))
        for device in {key.layer.kv_cache.device for key in keys if key.layer.kv_cache.is_cuda}:
            torch.cuda.synchronize(device)


WARM_UP = CodecWarmUp()


def register(layer: torch.nn.Module) -> None:
    """Before the layer has weights or a cache. Does nothing where vLLM collects no kernels."""
    JitWarmupRegistry.register(WARM_UP, layer)


def scored_by(settings: CodecSettings) -> tuple[int | None, float, bool]:
    return settings.sliding_window, settings.soft_cap, settings.sinks is not None


def own_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Threads begin on the first device, whatever their worker's is."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch(of: LayerLaunch) -> None:
    """One token of a request that is decoded and a chunk of another, in one workspace and in several: nothing is
    stored, and what is read is dropped.
    """
    layer, (_, kv_heads, heads) = of.layer, of.groups
    cache, codec, tokens = layer.kv_cache, layer.impl.codec, 1 + CHUNK
    dims = codec.key.sink.shape[1], codec.value.sink.shape[1]
    options = {"dtype": of.dtype, "device": cache.device}
    query, key, value, out = (
        torch.zeros(tokens, count, dim, **options)
        for count, dim in zip((heads, kv_heads, kv_heads, heads), (dims[0], *dims, dims[1]), strict=True)
    )
    numbers = torch.arange(tokens, device=cache.device)
    attention = layer.impl.attention
    attention.store(key, value, numbers, cache, torch.full_like(numbers, -1))
    attention.attend(query, cache, two_requests(cache), out)
    with attention.prefill.in_workspaces_of(1):
        attention.attend(query, cache, two_requests(cache), out)


def two_requests(cache: torch.Tensor) -> PagedBatch:
    """In the cache's first block, which no request has; one in as many tokens as are more than a tile."""

    def of(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=cache.device)

    blocks = torch.zeros(2, -(-CONTEXT // cache.shape[2]), dtype=torch.int32, device=cache.device)
    return PagedBatch(blocks, of(1, CONTEXT), of(0, 1, 1 + CHUNK), CHUNK, CONTEXT)
