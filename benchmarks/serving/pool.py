"""The same bytes of KV cache for every arm."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common.server import serve

PROBE_GIB = 1


def bytes_per_token(model: Path, flags: Sequence[str]) -> float:
    """What vLLM itself takes for a token of context: a pool of known size over the tokens that it reports for it."""
    probe = pool_flags(PROBE_GIB * 2**30) if torch.cuda.is_available() else []
    with serve(model, [*flags, *probe], pool_gib=PROBE_GIB) as server:
        return PROBE_GIB * 2**30 / server.capacity_tokens()


def pool_flags(pool_bytes: int) -> list[str]:
    """Of a GPU, where vLLM takes the bytes as they are."""
    return ["--kv-cache-memory-bytes", str(pool_bytes)]


def pool_blocks(pool_bytes: int, bytes_per_token: float, block_size: int) -> int:
    """Whole blocks in the pool. On a CPU vLLM takes GiB only, so small pools are given in blocks.

    Raises ValueError where not even two fit; the first one is never used.
    """
    blocks = round(pool_bytes / bytes_per_token * 1e3) // round(block_size * 1e3)
    if blocks < 2:
        raise ValueError(f"the pool of {pool_bytes} bytes holds {blocks} blocks of {block_size} tokens; enlarge it.")
    return blocks


def equal_pool(pool_bytes: int, bytes_per_token: float, block_size: int) -> list[str]:
    """Flags of ``vllm serve`` that give an arm ``pool_bytes``."""
    if torch.cuda.is_available():
        return pool_flags(pool_bytes)
    return ["--num-gpu-blocks-override", str(pool_blocks(pool_bytes, bytes_per_token, block_size))]


def contexts_held(capacity_tokens: int, block_size: int, tokens: int) -> int:
    """Requests of ``tokens`` whose blocks fit at the same time into what vLLM reports, less the block never used."""
    blocks = capacity_tokens // block_size - 1
    return blocks // -(-tokens // block_size)
