"""A bound kernel launches what Triton would have chosen, and asks it once for every kind of arguments."""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.common.provenance import ROOT
from palu_vllm.kernels.gpu.bound import BoundKernel, number_kinds, pointer_kinds


@triton.jit
def add_kernel(numbers_ptr, out_ptr, count, addend: tl.constexpr):
    index = tl.arange(0, 16)
    tl.store(out_ptr + index, tl.load(numbers_ptr + index, mask=index < count) + addend, mask=index < count)


def test_launches_are_those_of_the_kernel():
    bound = BoundKernel(add_kernel, {"addend": 3, "unknown": 1, "num_warps": 1})
    for count in (4, 16, 5):
        out = torch.zeros(16)
        bound.launch((1, 1, 1), {"out_ptr": out, "numbers_ptr": torch.ones(16), "count": count, "other": None})
        assert (out[:count] == 4).all() and (out[count:] == 0).all()


def test_a_name_that_is_missing():
    with pytest.raises(KeyError, match="count"):
        BoundKernel(add_kernel, {"addend": 3}).launch(
            (1, 1, 1), dict.fromkeys(("out_ptr", "numbers_ptr"), torch.ones(16))
        )


def kinds(value, varies=False):
    if isinstance(value, torch.Tensor):
        return pointer_kinds([value])
    return number_kinds({"number": value}, [("number", varies)])


@pytest.mark.parametrize("left, right, varies", [
    (torch.ones(8), torch.ones(8, dtype=torch.float64), False), (torch.ones(8), torch.ones(8)[1:], False),
    (1, 2, False), (32, 33, False), (32, 2**31, True),
], ids=["types", "alignment", "one", "sixteen", "64 bits"])  # fmt: skip
def test_kinds_that_differ(left, right, varies):
    assert kinds(left, varies) != kinds(right, varies)


def test_kinds_that_do_not_differ():
    assert kinds(torch.ones(8)) == kinds(torch.zeros(32, 4))
    assert kinds(17) == kinds(35) and kinds(1, True) == kinds(32, True)


COMPILED = """
import torch
from benchmarks.gpu.stub_driver import pretend
stub = pretend()
from palu_vllm.kernels.gpu.bound import BoundKernel
from palu_vllm.kernels.gpu.codec.put_values import put_values_kernel
asked = []
run = put_values_kernel.run
put_values_kernel.run = lambda *args, **kwargs: asked.append(1) or run(*args, **kwargs)
bound = BoundKernel(put_values_kernel, {"QUERIES_PER_KV": 4, "VALUE_DIM": 64})
rows = {"values_ptr": torch.ones(256), "out_ptr": torch.ones(256)}
rows["query_start_loc_ptr"] = torch.ones(2, dtype=torch.int32)
for strides in ((256, 64), (512, 64), (256, 3)):
    for tokens in (1, 16, 5):
        numbers = {"num_requests": tokens, "tokens_in_batch": tokens}
        bound.launch((1, 1, 1), rows | numbers | dict(zip(("stride_out_token", "stride_out_head"), strides)))
try:
    BoundKernel(put_values_kernel, {"VALUE_DIM": 64})
except ValueError as error:
    print(len(asked), stub.launches, len(bound.compiled), str(error)[:25])
"""


def test_triton_is_asked_once_for_every_kind(tmp_path):
    """Of two: one stride that is a multiple of 16, one that is not."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "2 9 2 got no QUERIES_PER_KV, ex", done.stderr
