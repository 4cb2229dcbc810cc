"""Blocks of a request that keeps attention sinks and a window (StreamingLLM, arXiv 2309.17453): the first and the last.

To vLLM a sliding window that holds a few blocks more. Everything here is about blocks in the scheduler; which tokens a
query sees is said by ``LayerShape``. Imported by what needs it, in the process of a worker and, where specs arrive,
in that of the scheduler; both then know the manager.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import SlidingWindowSpec

from palu_vllm.registry import register_cache_spec


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(SlidingWindowSpec):
    """A sliding window whose requests keep their first ``num_sinks`` tokens too."""

    num_sinks: int

    @property
    def sink_blocks(self) -> int:
        return cdiv(self.num_sinks, self.block_size)

    @property
    def num_retained_tokens(self) -> int:
        """0: workers of vLLM 0.33, which hide all blocks before a window from attention, leave the table alone."""
        return 0

    def max_admission_blocks_per_request(self, max_in_flight_tokens: int, max_model_len: int) -> int:
        """What a window needs, and the sinks; never more than the blocks of a whole request."""
        window = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return min(window + self.sink_blocks, cdiv(max_model_len, self.block_size))

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, Any]) -> bool:
        """Whether all layers keep the same tokens; their latents may differ in width."""
        same = (
            isinstance(spec, SinkWindowSpec) and spec.num_sinks == self.num_sinks for spec in kv_cache_specs.values()
        )
        return all(same) and super().is_uniform_with_collection(kv_cache_specs)


class SinkWindowManager(SlidingWindowManager):
    """vLLM's manager of sliding windows, but for the first ``sink_blocks`` of a request, which stay to its end.

    A request starts from the prefix cache where that has the sinks and the window before some token, or all blocks up
    to it. Latents depend on the tokens before alone, through sinks and windows, so such a hit changes nothing.
    """

    def __init__(self, kv_cache_spec: SinkWindowSpec, **kwargs) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.sink_blocks = kv_cache_spec.sink_blocks

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Frees whole blocks between sinks and window."""
        skipped = self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size
        self._remove_blocks_in_range(request_id, self.sink_blocks, skipped)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        *args,
        **kwargs,
    ) -> int:
        """With the sinks of a prefix that nobody holds at the moment, which the window's count leaves out."""
        counted = super().get_num_blocks_to_allocate(
            request_id, num_tokens, new_computed_blocks, total_computed_tokens, *args, **kwargs
        )
        skipped = self.get_num_skipped_tokens(total_computed_tokens) // self.block_size
        return counted + self._get_num_evictable_blocks(new_computed_blocks[: min(skipped, self.sink_blocks)])

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        super().add_local_computed_blocks(
            request_id, new_computed_blocks, num_local_computed_tokens, num_external_computed_tokens
        )
        held = self.req_to_blocks[request_id]
        sinks = [
            (index, block)
            for index, block in enumerate(new_computed_blocks[: self.sink_blocks])
            if held[index].is_null and not block.is_null
        ]
        self.block_pool.touch([block for _, block in sinks])
        for index, block in sinks:
            held[index] = block

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: SinkWindowSpec,
        *args,
        **kwargs,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The window's hit with the sinks in their places; without one of those, no hit."""
        found, length = super().find_longest_cache_hit(
            block_hashes, max_length, kv_cache_group_ids, block_pool, kv_cache_spec, *args, **kwargs
        )
        hashes = resolve_block_hashes(block_hashes, block_pool.hash_block_size, kv_cache_spec.block_size)
        for index in range(min(kv_cache_spec.sink_blocks, len(found[0]))):
            sinks = block_pool.get_cached_block(hashes[index], kv_cache_group_ids)
            if sinks is None:
                return tuple([] for _ in kv_cache_group_ids), 0
            for blocks, sink in zip(found, sinks, strict=True):
                blocks[index] = sink
        return found, length

    @classmethod
    def reachable_block_mask(
        cls,
        start_block: int,
        end_block: int,
        alignment_tokens: int | None,
        kv_cache_spec: SinkWindowSpec,
        *args,
        **kwargs,
    ) -> list[bool] | None:
        """Which blocks are worth keeping in the prefix cache: the sinks always."""
        mask = super().reachable_block_mask(start_block, end_block, alignment_tokens, kv_cache_spec, *args, **kwargs)
        for index in range(start_block, min(end_block, kv_cache_spec.sink_blocks)) if mask else ():
            mask[index - start_block] = True
        return mask


register_cache_spec(SinkWindowSpec, SinkWindowManager)
