"""The kernels compile for a real GPU and fit it, shown without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SHARED_MEMORY = 227 * 1024  # bytes that one program may use on sm_90
PREFILL_KERNELS = {"number_tiles_kernel", "rebuild_keys_kernel", "unpack_values_kernel", "prefill_kernel"}
KERNELS = {"store_latents_kernel", "decode_split_kernel", "decode_reduce_kernel"} | PREFILL_KERNELS


def resources(layer: str, cache: Path) -> dict[str, dict[str, int]]:
    """Of every kernel, in another process: here they are interpreted. Exit code 1 says that something spills."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    rows = cache / f"{layer}.json"
    command = [sys.executable, "-m", "benchmarks.kernels_check", "--arch", "sm_90", "--layers", layer, "--json", rows]
    run = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 1) and rows.exists(), run.stderr
    return {row.pop("kernel"): row for row in json.loads(rows.read_text())["rows"]}


@pytest.mark.parametrize(
    "layer", ["llama_2_7b_128_384", "llama_3_8b_256_256", "qwen_2_7b_128_384", "llama_3_8b_256_256_tiers"]
)
def test_compiles_for_sm_90(layer, tmp_path):
    found = resources(layer, tmp_path)
    assert set(found) == KERNELS
    assert all(kernel["shared_memory"] <= SHARED_MEMORY for kernel in found.values()), found
    assert all(found[kernel]["stack"] == 0 for kernel in PREFILL_KERNELS), found


@pytest.mark.parametrize("layer", ["llama_2_7b_128_384", "llama_3_8b_256_256", "qwen_2_7b_128_384"])
@pytest.mark.parametrize("form", ["4_bits", "4_bits_groups"])
def test_unpacking_spills_less_than_reading_numbers_as_they_are(layer, form, tmp_path):
    plain, packed = resources(layer, tmp_path), resources(f"{layer}_{form}", tmp_path)
    assert set(packed) == KERNELS
    assert all(kernel["shared_memory"] <= SHARED_MEMORY for kernel in packed.values()), packed
    assert all(packed[kernel]["stack"] == 0 for kernel in PREFILL_KERNELS), packed
    assert packed["decode_split_kernel"]["stack"] <= plain["decode_split_kernel"]["stack"]
