"""The kernels compile for a real GPU and fit it, shown without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SHARED_MEMORY = 227 * 1024  # bytes that one program may use on sm_90
KERNELS = {"store_latents_kernel", "decode_split_kernel", "decode_reduce_kernel", "prefill_kernel"}


@pytest.mark.parametrize("layer", ["llama_2_7b_128_384", "llama_3_8b_256_256", "qwen_2_7b_128_384"])
def test_compiles_for_sm_90(layer, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.palu_vllm.kernels.compile_ahead", layer]
    run = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    resources = {line.pop("kernel"): line for line in map(json.loads, run.stdout.splitlines())}
    assert set(resources) == KERNELS
    assert all(kernel["shared_memory"] <= SHARED_MEMORY for kernel in resources.values()), resources
