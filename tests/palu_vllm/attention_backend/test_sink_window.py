"""Blocks of sinks and a window, in vLLM's own pool: which come back, which are found again, how many are reserved."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.core.single_type_kv_cache_manager import get_manager_for_kv_cache_spec
from vllm.v1.kv_cache_interface import SlidingWindowSpec, UniformTypeKVCacheSpecs, replace_as

from palu_vllm.attention_backend.sink_window import SinkWindowManager, SinkWindowSpec

BLOCK, WINDOW = 4, 9
REQUEST = "request"


def spec(num_sinks: int = 6, window: int = WINDOW, **changes) -> SinkWindowSpec:
    sizes = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 24, "head_size_v": 40, "dtype": torch.float32}
    return SinkWindowSpec(**(sizes | {"sliding_window": window, "num_sinks": num_sinks} | changes))


def manager(of: SinkWindowSpec, blocks: int = 100) -> SinkWindowManager:
    pool = BlockPool(num_gpu_blocks=blocks, enable_caching=True, hash_block_size=BLOCK)
    return get_manager_for_kv_cache_spec(
        of,
        max_in_flight_tokens=8,
        max_model_len=400,
        block_pool=pool,
        enable_caching=True,
        kv_cache_group_id=0,
        scheduler_block_size=BLOCK,
    )


def held(found: SinkWindowManager) -> list[bool]:
    return [not block.is_null for block in found.req_to_blocks[REQUEST]]


def test_vllm_finds_the_manager_and_shares_groups_of_layers():
    assert isinstance(manager(spec()), SinkWindowManager)
    layers = {"a": spec(), "b": spec(head_size=8)}
    assert UniformTypeKVCacheSpecs.is_uniform_type(layers)
    assert not UniformTypeKVCacheSpecs.is_uniform_type(layers | {"c": spec(num_sinks=4)})
    assert not UniformTypeKVCacheSpecs.is_uniform_type(layers | {"c": spec(window=10)})
    plain = replace_as(spec(), SlidingWindowSpec, drop=["num_sinks"])
    assert not UniformTypeKVCacheSpecs.is_uniform_type(layers | {"c": plain})


@settings(derandomize=True)
@given(
    num_sinks=st.integers(1, 20),
    window=st.integers(1, 30),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=40),
)
def test_what_a_query_may_see_is_held_and_nothing_whole_between(num_sinks, window, steps):
    """Chunks of up to 8 tokens, as ``max_in_flight_tokens`` promises."""
    of = spec(num_sinks, window)
    found, computed = manager(of), 0
    everything = found.block_pool.get_num_free_blocks()
    most = of.max_admission_blocks_per_request(max_in_flight_tokens=8, max_model_len=400)
    for step in steps:
        found.remove_skipped_blocks(REQUEST, computed)
        found.allocate_new_blocks(REQUEST, computed + step, computed + step)
        blocks = held(found)
        seen = [*range(min(num_sinks, computed + step)), *range(max(0, computed - window + 1), computed + step)]
        assert all(blocks[token // BLOCK] for token in seen)
        needed = {token // BLOCK for token in seen} | set(range(of.sink_blocks))
        assert {index for index, there in enumerate(blocks) if there} <= needed
        assert sum(blocks) == everything - found.block_pool.get_num_free_blocks() <= most
        computed += step
    found.free(REQUEST)
    assert found.block_pool.get_num_free_blocks() == everything


@pytest.mark.parametrize(("max_model_len", "blocks"), [(400, 2 + 5), (24, 6), (8, 2)])
def test_admission_is_sinks_and_window_and_never_more_than_a_request(max_model_len, blocks):
    """9 - 1 tokens before 8 in flight are in at most 5 blocks."""
    assert spec().max_admission_blocks_per_request(8, max_model_len) == blocks


def cached(found: SinkWindowManager, indices: list[int]) -> list[bytes]:
    """Hashes of 12 blocks, those of ``indices`` in the prefix cache and held by nobody."""
    hashes = [bytes([index]) * 32 for index in range(12)]
    blocks = found.block_pool.get_new_blocks(len(indices))
    for index, block in zip(indices, blocks, strict=True):
        block.set_block_hash(make_block_hash_with_group_id(hashes[index], 0), num_tokens=BLOCK * (index + 1))
        found.block_pool.cached_block_hash_to_block.insert(block.block_hash, block)
    found.block_pool.free_blocks(reversed(blocks))
    return hashes


def hit(found: SinkWindowManager, hashes: list[bytes]) -> list[bool]:
    blocks, length = found.find_longest_cache_hit(
        hashes, 48, [0], found.block_pool, found.kv_cache_spec, drop_eagle_block=False, alignment_tokens=BLOCK
    )
    assert length == BLOCK * len(blocks[0])
    return blocks[0]


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([0, 1, 7, 8], [0, 1, 7, 8]),  # sinks, and the 8 tokens before token 36
        ([0, 1, 2, 3, 4], [0, 1, 3, 4]),
        ([0, 7, 8], []),  # a block of sinks is lost
        ([7, 8], []),
        ([0, 1, 8], [0, 1]),  # half the window is lost: the start alone
        ([0, 1, 2], [0, 1, 2]),
        ([], []),
    ],
)
def test_a_prefix_is_found_with_its_sinks_and_its_window(indices, expected):
    found = manager(spec())
    hashes = cached(found, indices)
    blocks = hit(found, hashes)
    assert [index for index, block in enumerate(blocks) if not block.is_null] == expected


def test_a_prefix_that_is_found_is_held_and_counted():
    found = manager(spec())
    blocks = hit(found, cached(found, [0, 1, 7, 8]))
    free, tokens = found.block_pool.get_num_free_blocks(), 9 * BLOCK
    asked = (REQUEST, tokens + 3, blocks, tokens, tokens, tokens + 3)
    assert found.get_num_blocks_to_allocate(*asked) == 4 + 1
    found.add_local_computed_blocks(REQUEST, blocks, tokens, 0)
    found.allocate_new_blocks(REQUEST, tokens + 3, tokens + 3)
    assert found.block_pool.get_num_free_blocks() == free - 5
    assert [index for index, there in enumerate(held(found)) if there] == [0, 1, 7, 8, 9]
    found.remove_skipped_blocks(REQUEST, 44)
    assert [index for index, there in enumerate(held(found)) if there] == [0, 1, 9]
    found.free(REQUEST)
    assert found.block_pool.get_num_free_blocks() == free


def test_sinks_stay_in_the_prefix_cache_however_sparse_it_is():
    options = {"alignment_tokens": BLOCK, "use_eagle": False, "retention_interval": 0, "reachable_boundaries": [40]}
    mask = SinkWindowManager.reachable_block_mask(0, 12, kv_cache_spec=spec(), **options)
    assert [index for index, kept in enumerate(mask) if kept] == [0, 1, 8, 9]
    later = SinkWindowManager.reachable_block_mask(5, 12, kv_cache_spec=spec(), **options)
    assert [5 + index for index, kept in enumerate(later) if kept] == [8, 9]


def test_workers_hide_no_block_from_attention():
    """vLLM 0.33 hides those before this many tokens, unless it is 0; 0.32 does not ask."""
    assert spec().num_retained_tokens == 0


def test_memory_of_a_request_does_not_grow_with_the_length_of_the_model():
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        model_config=SimpleNamespace(max_model_len=10**6),
        max_in_flight_tokens=8,
    )
    assert spec().max_memory_usage_bytes(config) == 7 * spec().page_size_bytes == 7 * BLOCK * 2 * 64 * 4
