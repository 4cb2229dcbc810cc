"""Compiles kernels for a GPU that is not there, from the very calls that would launch them.

The tensors are on the ``meta`` device, where reading a value fails: ``store`` and ``attend`` decide by shapes alone.
Only the table of rotations is real, which belongs to the layer. Needs a process without ``TRITON_INTERPRET``.
``benchmarks.kernels.check`` runs it for every chip and shape.
"""

import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from benchmarks.kernels.layers import Layer
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.gpu.tiling import Device
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch

WARP = 32
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
Call = tuple[JITFunction, dict[str, Any]]


def launched(launch: Callable[[], None]) -> list[Call]:
    """The kernels that ``launch`` would run, in order, and their arguments by name."""
    calls = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        calls.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs))

    with patch.object(JITFunction, "run", record):
        launch()
    return calls


def specialised(kernel: JITFunction, arguments: dict[str, Any]) -> tuple[dict, dict, dict, dict]:
    """Signature, constants, attributes and options for which Triton would compile these arguments: integers specialised
    by 1 and 16 unless the kernel says not to, pointers aligned to 16 bytes.
    """
    signature, constexprs, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        is_special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_special and value == 1):
            signature[name], constexprs[name] = "constexpr", value
            continue
        signature[name] = (
            TYPES[value.dtype] if isinstance(value, torch.Tensor) else {int: "i32", float: "fp32"}[type(value)]
        )
        is_aligned = isinstance(value, torch.Tensor) and not parameter.do_not_specialize_on_alignment
        if is_aligned or (is_special and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: arguments[name] for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in arguments}
    return signature, constexprs, attributes, options


def compile_call(kernel: JITFunction, arguments: dict[str, Any], arch: str) -> CompiledKernel:
    """For a chip such as ``sm_90``."""
    signature, constexprs, attributes, options = specialised(kernel, arguments)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), WARP)
    return triton.compile(ASTSource(kernel, signature, constexprs, attributes), target=target, options=options)


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers per thread, stack and shared memory in bytes, columns of tensor memory (none before sm_100)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([cuobjdump, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    fields = dict(field.split(":")[:2] for field in usage.split() if field.startswith(("REG:", "STACK:")))
    return {
        "registers": int(fields["REG"]),
        "stack": int(fields["STACK"]),
        "shared_memory": compiled.metadata.shared,
        "tensor_memory": compiled.metadata.tmem_size,
    }


def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def store_and_attend(layer: Layer, query_len: int, device: Device, requests: int = 8, factored: bool = False) -> None:
    """One step on a cache with vLLM's strides, in tiles for ``device``; ``factored``: attention applies ``v_up``."""
    shape, block_size = layer.shape, 16
    tokens = requests * query_len
    rebuild = KeyRebuild(
        k_up=meta(shape.num_groups_k, shape.rank_k, shape.group_size_k * shape.head_dim) if layer.compressed else None,
        k_bias=meta(shape.num_kv_heads * shape.head_dim) if layer.has_bias else None,
        cos_sin=layer.rotations(8192),
        k_norm=meta(shape.head_dim) if layer.has_key_norm else None,
    )
    batch = PagedBatch(
        block_table=meta(requests, 512, dtype=torch.int32),
        seq_lens=meta(requests, dtype=torch.int32),
        query_start_loc=meta(requests + 1, dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=8192,
    )
    dtype = torch.bfloat16 if shape.slot is None else torch.uint8
    cache = meta(100, block_size, shape.num_groups, shape.slot_width, dtype=dtype).transpose(1, 2)
    latents = meta(tokens, shape.num_groups, shape.numbers_k), meta(tokens, shape.num_groups, shape.numbers_v)
    v_up = meta(shape.num_groups_v, shape.rank_v, shape.group_size_v * shape.head_dim) if factored else None
    attention = TritonAttention(shape, rebuild, device=device, v_up=v_up)
    attention.store(*latents, cache, meta(tokens, dtype=torch.int64))
    out = meta(tokens, shape.num_heads, shape.head_dim if factored else shape.rank_v)
    attention.attend(meta(tokens, shape.num_heads, shape.head_dim), cache, batch, out)


def calls_of(layer: Layer, device: Device) -> list[Call]:
    """Every kernel of a prefill and of decoding one and four queries per request, each specialisation once."""
    steps: list[dict[str, Any]] = [{"query_len": queries} for queries in (1, 4, 64)]
    steps.append({"query_len": 1, "requests": 1, "factored": True})
    calls = [call for step in steps for call in launched(partial(store_and_attend, layer, device=device, **step))]
    return distinct(calls)


def distinct(calls: list[Call]) -> list[Call]:
    """One call of every specialisation."""
    return list({repr((call[0].__name__, specialised(*call))): call for call in calls}.values())
