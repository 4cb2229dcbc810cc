"""Tiles without a stack: candidates can be stored, cheap ones come first, and what is stored does what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernels.fit_registers import KERNELS, LAYERS, QUERIES, Job, candidates, difference, main
from benchmarks.kernels.gpus import CHIPS
from palu_vllm.kernels.gpu.tuned import FOLDER, Tiles, checked
from tests.support.processes import forked

ROOT = Path(__file__).parents[3]
TILES = {"decode": Tiles(64, 1, 8, rank=128, pairs=32, values=64), "prefill": Tiles(64, 2, 8)}
STORED = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("sm_*.json")}


@pytest.mark.parametrize("kind", TILES)
def test_candidates_can_be_stored_and_begin_with_small_changes(kind):
    found = list(candidates(TILES[kind]))
    assert TILES[kind] not in found and len(set(found)) == len(found) > 4
    assert all(checked(Path("x"), "key", tiles.stored()) == tiles for tiles in found)
    tokens = [tiles.tokens for tiles in found]
    assert tokens == sorted(tokens, reverse=True) and tokens[0] == TILES[kind].tokens
    changes = [difference(TILES[kind], tiles) for tiles in found if tiles.tokens == tokens[0]]
    assert changes == sorted(changes) and changes[0] > 0


def test_nothing_is_smaller_than_a_product_of_tensor_cores():
    found = list(candidates(Tiles(16, 1, 8, rank=16, pairs=16, values=16)))
    assert found and all(min(x.tokens, x.rank, x.pairs, x.values) == 16 for x in found)


@pytest.mark.parametrize("arch", STORED)
def test_stored_tiles_are_of_recommended_layers_and_reach_their_kernels(arch):
    keys = {Job(arch, name, *each).key for name in LAYERS for each in QUERIES}
    stored = STORED[arch]["tiles"]
    assert stored.keys() <= keys and stored.keys() == {row["key"] for row in STORED[arch]["tried"]}
    assert {key: Tiles(**tiles) for key, tiles in stored.items()} == dict(CHIPS[arch].tuned)


@pytest.mark.slow
def test_what_is_stored_leaves_no_stack(tmp_path):
    """One kernel of each kind: compiled with the formulas it has a stack, with what is stored none."""
    jobs = [("sm_89", "qwen_2_7b_128_384", "prefill", 64), ("sm_89", "llama_2_7b_128_384", "decode", 4)]
    code = (
        "from dataclasses import replace\n"
        "from benchmarks.kernels.fit_registers import CHIPS, Job, stack_of\n"
        f"for job in (Job(*each) for each in {jobs}):\n"
        "    device = CHIPS[job.arch]\n"
        "    print([stack_of(job, replace(device, tuned=())), stack_of(job, device)])"
    )
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    stacks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(stacks) == len(jobs) and all(formulas > 0 == stored for formulas, stored in stacks)


def test_interpreted_kernels_are_refused():
    done = forked.run(main, TRITON_INTERPRET="1")
    assert done.returncode == 2 and "TRITON_INTERPRET" in done.stderr
    assert KERNELS.keys() == {kind for kind, _ in QUERIES}
