"""Dense attention over whole keys and values: what latents are compared with. Each arm says why it cannot run."""

from importlib import import_module

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels.roofline_model import Work, dense_work
from benchmarks.latency.attention_case import Arm, Case, UnavailableError

FP8 = torch.float8_e4m3fn
SEGMENTS, SMALLEST_GRID = 16, 128  # of vLLM's Triton kernel, as its backend launches it


class Dense(Arm):
    """Keys, rotated, and values of every token: ``[num_blocks, block_size, num_kv_heads, head_dim]`` each."""

    rotates_first = True
    tolerance = 0.02

    def __init__(self, case: Case, stored: torch.dtype | None = None) -> None:
        self.case, self.shape, self.stored = case, case.layer.shape, stored or case.dtype
        width = self.shape.num_kv_heads * self.shape.head_dim
        self.projections = ((self.shape.num_heads * self.shape.head_dim, width, width),)
        self.keys, self.values = self.empty_cache(), self.empty_cache()
        for positions in case.chunks():
            self.slots = case.slots(positions)
            self.write(*(case.random(len(self.slots), width) for _ in range(2)))
        self.slots = case.slots(case.newest)

    def empty_cache(self) -> torch.Tensor:
        sizes = (self.case.num_blocks, self.case.block_size, self.shape.num_kv_heads, self.shape.head_dim)
        return torch.empty(sizes, dtype=self.stored, device=self.case.device)

    @property
    def out_width(self) -> int:
        return self.shape.head_dim

    def write(self, first: torch.Tensor, second: torch.Tensor) -> None:
        """Into ``slots`` of the blocks."""
        number = {1: torch.uint8, 2: torch.int16}[self.keys.element_size()]  # fp8 cannot be copied by index
        for cache, rows in ((self.keys, first), (self.values, second)):
            rows = rows.to(self.stored).unflatten(-1, cache.shape[2:])
            cache.view(number).flatten(0, 1).index_copy_(0, self.slots, rows.contiguous().view(number))

    def store(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self.write(first, second)

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in order of tokens, ``[requests, num_kv_heads, context, head_dim]``."""
        positions = torch.arange(self.case.batch.context, device=self.case.device)
        slots = self.case.slots(positions).view(self.case.batch.requests, -1)
        return tuple(cache.flatten(0, 1)[slots].transpose(1, 2) for cache in (self.keys, self.values))

    def expected(self, query: torch.Tensor) -> torch.Tensor:
        keys, values = (part.float().repeat_interleave(self.shape.queries_per_kv, dim=1) for part in self.contiguous())
        scores = self.shape.scale * torch.einsum("rhd,rhtd->rht", query.float(), keys)
        return torch.einsum("rht,rhtd->rhd", scores.softmax(dim=-1), values)

    def least_work(self) -> list[Work]:
        work = dense_work(self.shape, self.case.batch)
        narrower = 1 if self.stored != FP8 else 2
        return [Work(work.memory_bytes / narrower, work.l2_bytes / narrower, work.flops / narrower)]


class TorchSdpa(Dense):
    """``scaled_dot_product_attention``, over contiguous keys and values: it knows no blocks."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.keys, self.values = (part.contiguous() for part in super().contiguous())

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values

    def store(self, first: torch.Tensor, second: torch.Tensor) -> None:
        for cache, rows in ((self.keys, first), (self.values, second)):
            cache[:, :, -1] = rows.unflatten(-1, (self.shape.num_kv_heads, -1))

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        gqa = self.shape.queries_per_kv > 1
        return scaled_dot_product_attention(query.unsqueeze(2), self.keys, self.values, enable_gqa=gqa).squeeze(2)


class FlashAttention3(Dense):
    """As vLLM ships and calls it, its schedule made ahead of the timed region, as vLLM makes it once per step."""

    def __init__(self, case: Case, stored: torch.dtype | None = None) -> None:
        self.flash = flash_attention_3(case.device)
        super().__init__(case, stored)
        shape, paged = self.shape, case.paged
        ones = torch.ones(case.batch.requests, shape.num_kv_heads, dtype=torch.float32, device=case.device)
        self.scales = {name: ones for name in ("q_descale", "k_descale", "v_descale")} if self.stored == FP8 else {}
        self.out = torch.empty(
            case.batch.requests, shape.num_heads, shape.head_dim, dtype=case.dtype, device=case.device
        )
        self.schedule = self.flash.get_scheduler_metadata(
            case.batch.requests, 1, case.batch.context, shape.num_heads, shape.num_kv_heads, shape.head_dim,
            paged.seq_lens, qkv_dtype=self.stored, cu_seqlens_q=paged.query_start_loc, page_size=case.block_size,
            causal=True,
        )  # fmt: skip

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        paged = self.case.paged
        self.flash.flash_attn_varlen_func(
            query.to(self.stored), self.keys, self.values, max_seqlen_q=1, cu_seqlens_q=paged.query_start_loc,
            max_seqlen_k=paged.max_seq_len, seqused_k=paged.seq_lens, softmax_scale=self.shape.scale, causal=True,
            block_table=paged.block_table, out=self.out, scheduler_metadata=self.schedule, fa_version=3, **self.scales,
        )  # fmt: skip
        return self.out


class FlashAttention3Fp8(FlashAttention3):
    tolerance = 0.1

    def __init__(self, case: Case) -> None:
        super().__init__(case, FP8)


def flash_attention_3(device: torch.device):
    """vLLM's module, without the rest of vLLM."""
    try:
        import_module("vllm.vllm_flash_attn")
        flash = import_module("vllm.vllm_flash_attn.flash_attn_interface")
    except ImportError as error:
        raise UnavailableError(f"vllm.vllm_flash_attn cannot be imported: {error}") from error
    if not flash.FA3_AVAILABLE:
        raise UnavailableError(f"no FlashAttention-3 in this vLLM: {flash.FA3_UNAVAILABLE_REASON}")
    if torch.cuda.get_device_capability(device)[0] != 9:
        raise UnavailableError("FlashAttention-3 runs on chips of compute capability 9 only")
    return flash


class VllmTriton(Dense):
    """vLLM's Triton kernel for prefill and decode, split over the context where its backend would split it."""

    def __init__(self, case: Case) -> None:
        self.unified_attention = vllm_unified_attention()
        super().__init__(case)
        requests, heads = case.batch.requests, self.shape.num_heads
        self.out = case.random(requests, heads, self.shape.head_dim)
        self.ones = torch.ones(1, device=case.device).expand(requests, self.shape.num_kv_heads)
        padded = 1 << (self.shape.head_dim - 1).bit_length()
        sizes = {"output": (requests, heads, SEGMENTS, padded)} | dict.fromkeys(
            ("max", "expsum"), (requests, heads, SEGMENTS)
        )
        self.segments = {
            f"softmax_segm_{name}": torch.empty(size, dtype=torch.float32, device=case.device)
            for name, size in sizes.items()
        }

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        paged = self.case.paged
        self.unified_attention(
            q=query, k=self.keys, v=self.values, out=self.out, cu_seqlens_q=paged.query_start_loc, max_seqlen_q=1,
            seqused_k=paged.seq_lens, max_seqlen_k=paged.max_seq_len, softmax_scale=self.shape.scale, causal=True,
            window_size=(-1, -1), block_table=paged.block_table, softcap=0.0, q_descale=None, k_descale=self.ones,
            v_descale=self.ones, seq_threshold_3D=SMALLEST_GRID // self.shape.num_kv_heads,
            num_par_softmax_segments=SEGMENTS, **self.segments,
        )  # fmt: skip
        return self.out


def vllm_unified_attention():
    """The kernel's launcher, where vLLM has Triton."""
    try:
        if not import_module("vllm.triton_utils").HAS_TRITON:
            raise UnavailableError("vLLM has switched Triton off, which it does where it finds no GPU")
        return import_module("vllm.v1.attention.ops.triton_unified_attention").unified_attention
    except ImportError as error:
        raise UnavailableError(f"vLLM's Triton attention cannot be imported: {error}") from error
