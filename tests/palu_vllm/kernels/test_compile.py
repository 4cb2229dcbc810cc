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


RECOMMENDED = ["llama_2_7b_128_384", "llama_3_8b_256_256", "llama_3_8b_128_384", "qwen_2_7b_128_384"]


def decode_stack(found: dict[str, dict[str, int]]) -> int:
    return found["decode_split_kernel"]["stack"] + found["decode_reduce_kernel"]["stack"]


def resources(layer: str, cache: Path, *options: str) -> dict[str, dict[str, int]]:
    """Of every kernel, in another process: here they are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.palu_vllm.kernels.compile_ahead", layer, *options]
    run = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return {line.pop("kernel"): line for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize(
    "layer",
    [*RECOMMENDED, "llama_3_8b_256_256_tiers"],
)
def test_compiles_for_sm_90(layer, tmp_path):
    found = resources(layer, tmp_path)
    assert set(found) == KERNELS
    assert all(kernel["shared_memory"] <= SHARED_MEMORY for kernel in found.values()), found
    assert layer.endswith("tiers") or decode_stack(found) == 0, found


@pytest.mark.parametrize("layer", RECOMMENDED)
def test_unpacking_spills_nothing(layer, tmp_path):
    packed = resources(f"{layer}_4_bits", tmp_path)
    assert set(packed) == KERNELS
    assert all(kernel["shared_memory"] <= SHARED_MEMORY for kernel in packed.values()), packed
    assert packed["prefill_kernel"]["stack"] == 0
    assert decode_stack(packed) == 0, packed


@pytest.mark.parametrize("layer", ["llama_3_8b_128_384", "qwen_2_7b_128_384_4_bits"])
def test_decoding_with_whole_keys_rebuilt_compiles_too(layer, tmp_path):
    """As where a table has no constant frequencies."""
    whole = resources(layer, tmp_path, "--rebuild")
    assert whole["decode_split_kernel"] != resources(layer, tmp_path)["decode_split_kernel"]
    assert whole["decode_split_kernel"]["shared_memory"] <= SHARED_MEMORY
    assert layer.endswith("bits") or decode_stack(whole) == 0, whole
