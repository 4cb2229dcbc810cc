"""The kernels compile for a real GPU and fit it, shown without one: one layer of each kind.

``make kernels-check`` compiles every layer for every chip.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.layers import RECOMMENDED

REPOSITORY = Path(__file__).parents[3]
PREFILL_KERNELS = {"number_tiles_kernel", "rebuild_keys_kernel", "unpack_values_kernel", "prefill_kernel"}
KERNELS = {"store_latents_kernel", "decode_split_kernel", "decode_reduce_kernel"} | PREFILL_KERNELS
PLAIN, WHOLE_KEYS = "llama_3_8b_128_384", "llama_3_8b_128_384_whole_keys"
LAYERS = (
    PLAIN,
    WHOLE_KEYS,
    "llama_3_8b_256_256_4_bits",
    "qwen_2_7b_128_384_4_bits",
    "qwen_3_8b_256_256",
    "qwen_3_8b_256_256_4_bits",
    "llama_3_8b_256_256_tiers",
    "llama_3_8b_256_256_4_bits_groups",
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, dict[str, dict]]:
    """Resources by layer and kernel, from another process: here kernels are interpreted."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels_check", "--arch", "sm_90", "--layers", *LAYERS]
    run = subprocess.run(
        [*command, "--json", folder / "rows.json"],
        cwd=REPOSITORY,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, dict[str, dict]] = {name: {} for name in LAYERS}
    for row in json.loads((folder / "rows.json").read_text())["rows"]:
        found[row["layer"]][row["kernel"]] = row
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kernel_fits(compiled, layer):
    assert set(compiled[layer]) == KERNELS
    assert all(row["shared_memory"] <= row["limit"] for row in compiled[layer].values())
    assert all(compiled[layer][kernel]["stack"] == 0 for kernel in PREFILL_KERNELS), compiled[layer]


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer in RECOMMENDED] + [WHOLE_KEYS])
def test_nothing_spills(compiled, layer):
    assert all(row["stack"] == 0 for row in compiled[layer].values()), compiled[layer]


def test_without_constant_frequencies_another_kernel_rebuilds_whole_keys(compiled):
    plain, whole = (
        {key: value for key, value in compiled[layer]["decode_split_kernel"].items() if key != "layer"}
        for layer in (PLAIN, WHOLE_KEYS)
    )
    assert plain != whole
