"""Nothing that differs from batch to batch decides what Triton compiles, so that no batch waits for a compiler."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.common.provenance import ROOT

CACHE = {"num_groups", "block_size", "stride_cache_block", "stride_cache_group", "stride_cache_slot"}
HEADS = {f"stride_{name}" for name in ("out_token", "out_head", "key_token", "key_head", "value_token", "value_head")}
SAME_IN_ALL_BATCHES = CACHE | HEADS
KERNELS = {
    "decode": "decode_codes_kernel",
    "put_values": "put_values_kernel",
    "restore": "restore_keys_kernel",
    "reduce": "reduce_pieces_kernel",
    "storing.store": "store_codes_kernel",
    "storing.widen": "widen_kernel",
    "work": "number_items_kernel",
}
PRINTED = """
import importlib, json, sys
kernel = getattr(importlib.import_module("palu_vllm.kernels.gpu.codec." + sys.argv[1]), sys.argv[2])
free = [p for p in kernel.params if not p.is_constexpr and not p.name.endswith("_ptr")]
print(json.dumps({p.name: p.do_not_specialize for p in free}))
"""


@pytest.mark.parametrize("module", KERNELS)
def test_numbers_that_kernels_are_compiled_for(module):
    """The interpreter knows no parameters, so another process is asked, in which kernels are to be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PRINTED, module, KERNELS[module]]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True).stdout
    numbers = json.loads(printed.splitlines()[-1])
    assert numbers and {name for name, varies in numbers.items() if not varies} <= SAME_IN_ALL_BATCHES
