"""Layers that share a cache are found in a group of specs that differ, and count nowhere."""

import copy

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, UniformTypeKVCacheSpecs
from vllm.v1.worker.utils import add_kv_sharing_layers_to_kv_cache_groups

from palu_vllm.attention_backend.shared_specs import with_shared_specs


def spec(width: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=width, head_size_v=width, dtype=torch.float32)


@pytest.fixture
def group():
    specs = {"a": spec(32), "b": spec(48)}
    return KVCacheGroupSpec(["a", "b"], UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs=specs))


def test_a_shared_layer_has_its_targets_spec(group):
    before = group.kv_cache_spec.page_size_bytes
    with_shared_specs(add_kv_sharing_layers_to_kv_cache_groups)({"c": "b"}, [group])
    assert group.layer_names == ["a", "b", "c"]
    for each in (group, copy.deepcopy(group)):
        assert each.kv_cache_spec.kv_cache_specs["c"] == spec(48)
        assert set(each.kv_cache_spec.kv_cache_specs) == {"a", "b"}
        assert each.kv_cache_spec.page_size_bytes == before
    with pytest.raises(KeyError):
        group.kv_cache_spec.kv_cache_specs["d"]


def test_vllm_alone_does_not_find_it(group):
    """The reason for ``shared_specs``; where this fails, it has become superfluous."""
    add_kv_sharing_layers_to_kv_cache_groups({"c": "b"}, [group])
    assert "c" in group.layer_names
    with pytest.raises(KeyError):
        group.kv_cache_spec.kv_cache_specs["c"]


def test_groups_of_one_spec_are_left_alone():
    group = KVCacheGroupSpec(["a", "b"], spec(32))
    with_shared_specs(add_kv_sharing_layers_to_kv_cache_groups)({"c": "b"}, [group], set())
    assert group.kv_cache_spec == spec(32)
