"""Batches over poisoned caches of codes, for every implementation of attention over them."""

import torch

from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.interface import PagedBatch

WHOLE = CodecSettings(4, 0.2)
FORMATS = {
    "8 bits": (((64, 8),), ((64, 8),)),
    "5 bits": (((64, 5),), ((64, 5),)),
    "4 bits": (((64, 4),), ((64, 4),)),
    "3 bits": (((64, 3),), ((64, 3),)),
    "2 bits": (((64, 2),), ((64, 2),)),
    "tiers": (((16, 8), (16, 5), (16, 3), (16, 2)), ((32, 8), (16, 4), (16, 2))),
    "odd": (((16, 8), (31, 3)), ((16, 8), (3, 5), (7, 3), (26, 2))),
    "16 bits": (((64, 16),), ((40, 16),)),
}
Sizes = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of every request, and its newest ones, the queries
SIZES: Sizes = ((37, 5, 231, 1200, 1, 150), (1, 5, 170, 3, 1, 150))
BLOCKS = 128


def cached(codec, block_size=16, sizes=SIZES):
    """A cache with NaN in every scale that was not written, and its permuted block table."""
    generator = torch.Generator().manual_seed(0)
    cache = torch.full((BLOCKS, codec.num_groups, block_size, codec.slot.bytes), 255, dtype=torch.uint8)
    free = torch.randperm(BLOCKS, generator=generator)
    table = torch.full((len(sizes[0]), 80), 2**30, dtype=torch.int32)
    attention = CodecAttention(codec, WHOLE)
    for request, length in enumerate(sizes[0]):
        count = -(-length // block_size)
        table[request, :count], free = free[:count], free[count:]
        key, value = tokens(codec, length, request)
        slots = (
            table[request].long()[torch.arange(length) // block_size] * block_size + torch.arange(length) % block_size
        )
        attention.store(key, value, torch.arange(length), cache, slots)
    return cache, table


def tokens(codec, count, seed):
    """Keys, the first one near the sinks' centre, and values."""
    generator = torch.Generator().manual_seed(seed)
    key = 3 * torch.randn(count, codec.num_kv_heads, codec.key.sink.shape[1], generator=generator)
    value = torch.randn(count, codec.num_kv_heads, codec.value.sink.shape[1], generator=generator)
    key[:1] += codec.key.sink
    return key, value


def batch(table, sizes=SIZES):
    lengths, queries = sizes
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    return PagedBatch(table, torch.tensor(lengths, dtype=torch.int32), starts, max(queries), max(lengths))


def random_queries(codec, settings, sizes=SIZES, dtype=torch.float32):
    shape = (sum(sizes[1]), settings.num_heads, codec.key.sink.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def attended(implementation, codec, settings, cache, table, dtype=torch.float32, sizes=SIZES):
    """Output of every query, and of one row more, which must be left alone."""
    query = random_queries(codec, settings, sizes, dtype)
    out = torch.full((len(query) + 1, settings.num_heads, codec.value.sink.shape[1]), torch.nan, dtype=dtype)
    implementation(codec, settings).attend(query, cache, batch(table, sizes), out)
    assert out[-1].isnan().all(), "rows past the last query are left alone"
    return out[:-1].float()


def stored(implementation, codec, settings, count, num_blocks):
    """The cache that ``count`` tokens make, but two: in any order, zeros and numbers that are not finite among them."""
    key, value = tokens(codec, count, 1)
    key[7], value[9] = 0, 0
    key[11, 0, 3], value[13, 1, 5], key[17] = torch.inf, torch.nan, 1e30
    slots = torch.randperm(16 * num_blocks, generator=torch.Generator().manual_seed(5))[: count - 2]
    slots[20] = -1
    cache = torch.full((num_blocks, codec.num_groups, 16, codec.slot.bytes), 7, dtype=torch.uint8)
    implementation(codec, settings).store(key, value, torch.arange(count) + 40, cache, slots)
    return cache
