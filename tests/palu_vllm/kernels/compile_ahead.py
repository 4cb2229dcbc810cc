"""Compiles a kernel for a GPU that is not there, from the very call that would launch it.

The tensors are on the ``meta`` device, where reading a value fails: ``store`` and ``attend`` decide by shapes alone.
Only the table of rotations is real, which a layer reads once, before it serves.
Run as a program, without ``TRITON_INTERPRET``: ``python -m tests.palu_vllm.kernels.compile_ahead LAYER`` prints one
JSON line per kernel with its shared memory, registers and stack in bytes; with ``--rebuild`` for a table of rotations
that has no frequencies, so that whole keys are rebuilt.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from palu_vllm.kernels.decode import decode_split_kernel
from palu_vllm.kernels.decode_reduce import decode_reduce_kernel
from palu_vllm.kernels.launch import TritonAttention
from palu_vllm.kernels.operands import KeyRebuild, PagedBatch
from palu_vllm.kernels.prefill import prefill_kernel
from palu_vllm.kernels.store_latents import store_latents_kernel
from tests.palu_vllm.kernels.paged_batches import cos_sin_table
from tests.shapes import SERVED_LAYERS, SERVED_PACKED_LAYERS, Layer

KERNELS = (store_latents_kernel, decode_split_kernel, decode_reduce_kernel, prefill_kernel)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def launched(launch: Callable[[], None]) -> dict[JITFunction, dict[str, Any]]:
    """The kernels that ``launch`` would run and their arguments by name."""
    calls = {}
    for kernel in KERNELS:
        kernel.run = lambda *args, grid, warmup, kernel=kernel, **kwargs: calls.update(
            {kernel: dict(zip(kernel.arg_names, args, strict=False)) | kwargs}
        )
    launch()
    return calls


def compile_call(kernel: JITFunction, arguments: dict[str, Any], target: GPUTarget) -> CompiledKernel:
    """What Triton would compile for these arguments: integers specialised by 1 and 16, pointers aligned to 16 bytes."""
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constexprs[name] = "constexpr", value
            continue
        signature[name] = (
            TYPES[value.dtype] if isinstance(value, torch.Tensor) else {int: "i32", float: "fp32"}[type(value)]
        )
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    return triton.compile(ASTSource(kernel, signature, constexprs, attributes), target=target, options=options)


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers per thread, stack and shared memory in bytes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([cuobjdump, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    fields = dict(field.split(":")[:2] for field in usage.split() if field.startswith(("REG:", "STACK:")))
    return {"registers": int(fields["REG"]), "stack": int(fields["STACK"]), "shared_memory": compiled.metadata.shared}


def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def store_and_attend(layer: Layer, query_len: int) -> None:
    """One step of 8 requests on a cache with vLLM's strides."""
    shape, requests, block_size = layer.shape, 8, 16
    tokens = requests * query_len
    rebuild = KeyRebuild(
        k_up=meta(shape.num_groups, shape.rank_k, shape.group_size * shape.head_dim) if layer.compressed else None,
        k_bias=meta(shape.num_kv_heads * shape.head_dim) if layer.has_bias else None,
        cos_sin=cos_sin_table(8192, shape.head_dim, layer.theta),
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
    latents = meta(tokens, shape.num_groups, shape.rank_k), meta(tokens, shape.num_groups, shape.rank_v)
    attention = TritonAttention(shape, rebuild)
    attention.store(*latents, cache, meta(tokens, dtype=torch.int64))
    out = meta(tokens, shape.num_heads, shape.rank_v)
    attention.attend(meta(tokens, shape.num_heads, shape.head_dim), cache, batch, out)


def main(name: str, *options: str) -> None:
    layer, calls = (SERVED_LAYERS | SERVED_PACKED_LAYERS)[name], {}
    if "--rebuild" in options:
        layer = replace(layer, theta=float("nan"))
    for query_len in (1, 64):
        calls |= launched(lambda query_len=query_len: store_and_attend(layer, query_len))
    for kernel, arguments in calls.items():
        compiled = compile_call(kernel, arguments, GPUTarget("cuda", 90, 32))
        print(json.dumps({"kernel": kernel.__name__} | resources(compiled)))


if __name__ == "__main__":
    main(*sys.argv[1:])
