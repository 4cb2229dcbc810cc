"""The arms of ``cpu_codec``: vLLM's own attention on a CPU, a codec's, and that over the paper's latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.codec.levels import unit
from palu_vllm.format.latent_format import CodedFormat, Tier
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.choose import codec_attention, codec_path
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.cpu.attention import TorchAttention
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch

BLOCK_SIZE = 32  # tokens; vLLM's own kernel wants a multiple of 32
Tiers = tuple[tuple[int, int], ...]
Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Requests of ``queries`` tokens at the end of ``context``, and a layer's heads."""

    requests: int
    context: int
    kv_heads: int
    queries_per_kv: int
    head_dim: int
    queries: int = 1

    @property
    def heads(self) -> int:
        return self.kv_heads * self.queries_per_kv

    @property
    def name(self) -> str:
        return f"{self.requests}x{self.context}, {self.kv_heads} of {self.queries_per_kv}, {self.head_dim}"

    @property
    def num_blocks(self) -> int:
        return self.requests * -(-self.context // BLOCK_SIZE)

    def batch(self) -> PagedBatch:
        """Blocks in random order."""
        table = torch.randperm(self.num_blocks, dtype=torch.int32).view(self.requests, -1)
        lengths = torch.full((self.requests,), self.context, dtype=torch.int32)
        starts = torch.arange(self.requests + 1, dtype=torch.int32) * self.queries
        return PagedBatch(table, lengths, starts, self.queries, self.context)

    def query(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(self.requests * self.queries, self.heads, self.head_dim).to(dtype)

    def dense_bytes(self, dtype: torch.dtype) -> int:
        return 2 * self.requests * self.context * self.kv_heads * self.head_dim * dtype.itemsize


def dense(shape: Shape, dtype: torch.dtype) -> Run:
    """``cpu_attention_with_kv_cache`` as vLLM's CPU_ATTN calls it; its schedule is made before, as once per step."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    batch, query = shape.batch(), shape.query(dtype)
    cache = torch.randn(shape.num_blocks, shape.kv_heads, 2 * BLOCK_SIZE, shape.head_dim).to(dtype)
    key, value = cache.chunk(2, dim=2)
    isa = "amx" if torch.cpu._is_amx_tile_supported() and dtype == torch.bfloat16 else "vec"
    schedule = ops.cpu_attn_get_scheduler_metadata(
        shape.requests, shape.heads, shape.kv_heads, shape.head_dim, batch.seq_lens, dtype, batch.query_start_loc,
        True, -1, isa, True,
    )  # fmt: skip
    out = torch.empty_like(query)
    return lambda: ops.cpu_attention_with_kv_cache(
        query, key, value, out, batch.query_start_loc, batch.seq_lens, scale=shape.head_dim**-0.5, causal=True,
        alibi_slopes=None, sliding_window=-1, block_table=batch.block_table, softcap=0.0, scheduler_metadata=schedule,
        s_aux=None,
    )  # fmt: skip


def side(tiers: Tiers, groups: int, sink: torch.Tensor) -> SideCodec:
    """A random rotation; numbers of a random key have about one standard deviation."""
    form = CodedFormat(tuple(Tier(size, bits) for size, bits in tiers))
    steps = torch.cat([torch.full((size,), unit(bits)) for size, bits in tiers])
    basis = torch.linalg.qr(torch.randn(groups, form.rank, form.rank)).Q
    return SideCodec(form, basis * steps, sink)


def random_codec(kv_heads: int, head_dim: int, groups: int, tiers: tuple[Tiers, Tiers]) -> LayerCodec:
    def centre() -> torch.Tensor:
        return torch.randn(kv_heads, head_dim)

    half = head_dim // 2
    frequencies = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    key, value = (side(part, groups, 8 * centre()) for part in tiers)
    return LayerCodec(key, value, centre(), centre(), torch.arange(head_dim) % half, frequencies, centre())


def coded(shape: Shape, groups: int, tiers: tuple[Tiers, Tiers]) -> tuple[Run, int]:
    """Attention over a codec's slots as it is served on this machine, and the bytes of the slots."""
    if codec_path("cpu") != "C++":
        raise RuntimeError(f"the C++ library is not here: {codec_path('cpu')}")
    codec = random_codec(shape.kv_heads, shape.head_dim, groups, tiers)
    batch, query = shape.batch(), shape.query()
    attention = codec_attention("cpu")(codec, CodecSettings(shape.heads, shape.head_dim**-0.5))
    cache = torch.zeros(shape.num_blocks, groups, BLOCK_SIZE, codec.slot.bytes, dtype=torch.uint8)
    for blocks in batch.block_table.long():
        slots = (blocks[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten()[: shape.context]
        tokens = (torch.randn(shape.context, shape.kv_heads, shape.head_dim) for _ in range(2))
        attention.store(*tokens, torch.arange(shape.context), cache, slots)
    out = torch.empty_like(query)
    return lambda: attention.attend(query, cache, batch, out), shape.requests * shape.context * codec.bytes_per_token


def rebuild_alone(shape: Shape, group_size: int) -> Run:
    """The product that gives all keys from latents of half the rank: the least that the paper's path takes."""
    width = group_size * shape.head_dim
    latent = torch.randn(shape.kv_heads // group_size, shape.requests * shape.context, width // 2)
    up = torch.randn(shape.kv_heads // group_size, width // 2, width)
    return lambda: torch.matmul(latent, up)


def latents(shape: Shape, group_size: int) -> tuple[Run, int]:
    """The paper's path at half the rank, float32, and the bytes of the latents."""
    rank = group_size * shape.head_dim // 2
    layer = LayerShape(shape.heads, shape.kv_heads, shape.head_dim, group_size, group_size, rank, rank)
    positions = torch.arange(shape.context)[:, None] / 10_000 ** (torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    k_up = torch.randn(layer.num_groups_k, rank, group_size * shape.head_dim) / rank**0.5
    attention = TorchAttention(layer, KeyRebuild(k_up, None, torch.cat((positions.cos(), positions.sin()), -1)))
    cache = torch.randn(shape.num_blocks, layer.num_groups, BLOCK_SIZE, 2 * rank)
    batch, query = shape.batch(), shape.query()
    out = torch.empty(len(query), shape.heads, rank)
    return lambda: attention.attend(query, cache, batch, out), cache.nbytes
