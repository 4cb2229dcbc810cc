"""Layers may share a KV cache where layers have different ranks.

vLLM counts a layer that shares to the KV cache group of its target and then asks the group for the layer's own spec.
Where specs of a group differ, as they do with ranks that differ, there is one per layer that has a cache and none for
those that share. Until vLLM gives them their target's.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from vllm.v1.kv_cache_interface import KVCacheGroupSpec, KVCacheSpec, UniformTypeKVCacheSpecs


class SharedSpecs(dict[str, KVCacheSpec]):
    """Specs of layers with a cache; who looks up one that shares gets its target's. Lengths and sums do not see it."""

    def __init__(self, specs: Mapping[str, KVCacheSpec], targets: Mapping[str, str]) -> None:
        super().__init__(specs)
        self.targets = dict(targets)

    def __missing__(self, layer: str) -> KVCacheSpec:
        return self[self.targets[layer]]


def with_shared_specs(add: Callable[..., None]) -> Callable[..., None]:
    """``add_kv_sharing_layers_to_kv_cache_groups`` of vLLM, whose groups then know the specs of all their layers."""

    @functools.wraps(add)
    def added(shared: dict[str, str], groups: list[KVCacheGroupSpec], *rest: object) -> None:
        add(shared, groups, *rest)
        for group in groups:
            if isinstance(group.kv_cache_spec, UniformTypeKVCacheSpecs):
                specs = SharedSpecs(group.kv_cache_spec.kv_cache_specs, shared)
                group.kv_cache_spec = replace(group.kv_cache_spec, kv_cache_specs=specs)

    return added


@functools.cache  # once per process
def share_specs() -> None:
    """Tells both model runners of vLLM. Changes nothing for models whose layers share no cache."""
    from vllm.v1.worker import gpu_model_runner  # heavy, and there already where a model is built
    from vllm.v1.worker.gpu import attn_utils

    for runner in (gpu_model_runner, attn_utils):
        add = with_shared_specs(runner.add_kv_sharing_layers_to_kv_cache_groups)
        runner.add_kv_sharing_layers_to_kv_cache_groups = add
