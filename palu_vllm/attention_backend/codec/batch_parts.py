"""Cuts a batch where requests of many queries begin, by what the host knows, so that each part takes its own path."""

import torch

from palu_vllm.kernels.gpu.codec.plan import MOST_QUERIES
from palu_vllm.kernels.interface import BatchParts, PagedBatch


def batch_parts(batch: PagedBatch, starts: torch.Tensor, lengths: torch.Tensor | None) -> BatchParts | None:
    """Both parts, where requests of at most ``MOST_QUERIES`` queries come first; otherwise None.

    ``starts [requests + 1]`` are the host's ``query_start_loc``, ``lengths [requests]`` at least its ``seq_lens``.
    """
    queries = starts.diff()
    is_few = queries <= MOST_QUERIES
    count = int(is_few.sum())
    if not is_few[:count].all():
        return None
    tokens = int(starts[count])
    few = many = None
    if count:
        few = PagedBatch(
            batch.block_table[:count], batch.seq_lens[:count], batch.query_start_loc[: count + 1],
            int(queries[:count].max()), batch.max_seq_len,
        )  # fmt: skip
    if count < len(queries):
        known = None if lengths is None else lengths[count:]
        longest, total = (batch.max_seq_len, None) if known is None else (int(known.max()), int(known.sum()))
        many = PagedBatch(
            batch.block_table[count:], batch.seq_lens[count:].clone(), batch.query_start_loc[count:] - tokens,
            batch.max_query_len, longest, total,
        )  # fmt: skip
    return BatchParts(tokens, few, many)
