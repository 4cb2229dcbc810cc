"""The compile check says what is wrong with a kernel, and tiles follow the chip that is compiled for."""

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from benchmarks.kernels.check import LAYERS, failures, line, main, problems, row_of
from benchmarks.kernels.gpus import CHIPS
from benchmarks.kernels.layers import RECOMMENDED
from tests.support.processes import forked

REPOSITORY = Path(__file__).parents[3]
CLEAN = {
    "triton": "4.0.0", "arch": "sm_90", "layer": "llama_3_8b_256_256", "kernel": "decode_split_kernel",
    "limit": 227 * 1024, "registers": 254, "stack": 0, "shared_memory": 200000, "tensor_memory": 0,
    "synchronous_loads": 0, "seconds": 8.0,
}  # fmt: skip
NOT_RECOMMENDED = {"layer": "llama_3_8b_256_256_tiers"}


def run(*arguments: object, cache: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels.check", *map(str, arguments)]
    environment = kept | {"TRITON_CACHE_DIR": str(cache)} | environment
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("change", "said", "failed"),
    [
        ({}, "", False),
        ({"stack": 8}, "spills", True),
        ({"stack": 8} | NOT_RECOMMENDED, "spills", False),
        ({"shared_memory": 227 * 1024 + 1} | NOT_RECOMMENDED, "needs more shared memory than 227 KiB", True),
        ({"tensor_memory": 513} | NOT_RECOMMENDED, "needs more tensor memory than 512 columns", True),
        ({"seconds": 61.0} | NOT_RECOMMENDED, "compiles for more than 60 s", True),
        ({"error": "no such thing"} | NOT_RECOMMENDED, "does not compile: no such thing", True),
    ],
)
def test_verdicts(change, said, failed):
    row = CLEAN | change
    assert "; ".join(problems(row).values()) == said
    assert bool(failures(row)) == failed
    assert ("FAILED: " in line(row)) == failed and line(row).endswith(said)


def test_a_compiler_that_ends_its_process_is_a_failure():
    future = Future()
    future.set_exception(BrokenProcessPool("a process died"))
    row = row_of(future, CLEAN | NOT_RECOMMENDED)
    assert failures(row) and "a process died" in line(row)


def test_recommended_layers_are_the_five_shapes_in_16_and_4_bits():
    shapes = (
        "llama_2_7b_128_384",
        "llama_3_8b_128_384",
        "llama_3_8b_256_256",
        "qwen_2_7b_128_384",
        "qwen_3_8b_256_256",
    )
    assert {name for shape in shapes for name in (shape, f"{shape}_4_bits")} == RECOMMENDED <= set(LAYERS)


@pytest.mark.slow
def test_tiles_follow_the_chip(tmp_path):
    found = tmp_path / "rows.json"
    layer, arches = "llama_3_8b_256_256", ("sm_89", "sm_100")
    told = tmp_path / "rows.jsonl"
    done = run("--arch", *arches, "--layers", layer, "--json", found, "--rows", told, cache=tmp_path)
    rows = json.loads(found.read_text())["rows"]
    assert len(told.read_text().splitlines()) == len(rows), "one line per kernel, as it is compiled"
    assert {row["arch"] for row in rows} == set(arches)
    decode = {row["arch"]: row for row in rows if row["kernel"] == "decode_split_kernel"}
    assert all(row["limit"] == CHIPS[arch].shared_memory >= row["shared_memory"] for arch, row in decode.items())
    assert decode["sm_89"]["shared_memory"] < decode["sm_100"]["shared_memory"]
    assert done.returncode == 0 and not any(row["failures"] for row in rows), "a recommended layer"
    assert f"{len(rows)} kernels compiled" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--arch", "sm_75"], {}, "unknown chip 'sm_75'; known: sm_100, sm_80, sm_89, sm_90"),
        (["--layers", "gpt"], {}, "unknown layer 'gpt'; known: codec_llama_3_8b, "),
        (["--recommended", "--layers", "llama_3_8b_uncompressed"], {}, "none of these layers is recommended"),
        ([], {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET=1 leaves nothing to compile"),
    ],
)
def test_refusals(arguments, environment, said):
    done = forked.run(main, *arguments, **({"TRITON_INTERPRET": "0"} | environment))
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
