"""The kernels compile for a real GPU and fit it, shown without one: one layer of each kind.

``make kernels-check`` compiles every layer for every chip, ``.ci/run`` the recommended ones for sm_90; so what they
compile, and more of the kinds, is slow here.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kernels.check import LONGEST

REPOSITORY = Path(__file__).parents[3]
PREFILL_KERNELS = {"number_tiles_kernel", "rebuild_keys_kernel", "unpack_values_kernel", "prefill_kernel"}
KERNELS = {"store_latents_kernel", "decode_split_kernel", "decode_reduce_kernel"} | PREFILL_KERNELS
PLAIN, WHOLE_KEYS = "llama_3_8b_128_384", "llama_3_8b_128_384_whole_keys"
MORE = (
    "qwen_3_8b_256_256_4_bits",
    "qwen_2_7b_128_384_3_bits",
    "llama_3_8b_256_256_tiers",
    "qwen_2_7b_128_384_4_bits_groups",
    "llama_3_8b_256_256_tiers_groups",
)
LAYERS = (WHOLE_KEYS, *(pytest.param(name, marks=pytest.mark.slow) for name in (PLAIN, *MORE)))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Callable[[str], list[dict]]:
    """Resources of the kernels of a layer, compiled once by another process: here kernels are interpreted."""
    return functools.cache(lambda layer: compile_layer(layer, tmp_path_factory.mktemp("compiled")))


def compile_layer(layer: str, folder: Path) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels.check", "--arch", "sm_90", "--layers", layer]
    run = subprocess.run(
        [*command, "--json", folder / "rows.json"],
        cwd=REPOSITORY,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    failed = {kind for row in rows for kind in row["failures"]}
    # `make kernels-check` holds compilations to the limit; beside other tests they may take twice as long
    assert run.returncode == 0 or failed == {"seconds"}, run.stdout + run.stderr
    assert max(row["seconds"] for row in rows) < 2 * LONGEST
    return rows


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kernel_fits(compiled, layer):
    assert {row["kernel"] for row in compiled(layer)} == KERNELS
    assert {row.get("queries") for row in compiled(layer)} == {None, 1, 4}
    assert all(row["shared_memory"] <= row["limit"] for row in compiled(layer))


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_spills(compiled, layer):
    assert all(row["stack"] == 0 for row in compiled(layer)), compiled(layer)


@pytest.mark.slow
def test_without_constant_frequencies_another_kernel_rebuilds_whole_keys(compiled):
    plain, whole = (
        {
            key: value
            for row in compiled(layer)
            if row.get("queries") == 1
            for key, value in row.items()
            if key != "layer"
        }
        for layer in (PLAIN, WHOLE_KEYS)
    )
    assert plain != whole
