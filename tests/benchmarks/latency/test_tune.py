"""The tuner, end to end on a tiny layer in Triton's interpreter: what it writes is what the kernels read."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.latency.harness import SMOKE
from benchmarks.latency.tune import CANDIDATES, beside, main, merged
from palu_vllm.kernels.gpu.tuned import ALLOWED, Tiles, read_tuned
from tests.support.processes import forked

ROOT = Path(__file__).parents[3]
WINNER = {"tokens": 64, "num_stages": 1, "num_warps": 4}


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.latency.tune", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_smoke_writes_what_the_kernels_read(tmp_path):
    out = tmp_path / "tuned.json"
    done = run("--smoke", "--context", 20, "--candidates", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert written["kind"] == SMOKE and len(written["tried"]) == 3
    assert all(len(result["candidates"]) == 2 for result in written["tried"]), "the interpreter runs every candidate"
    assert len(read_tuned(out, SMOKE)) == sum(result["winner"] is not None for result in written["tried"])


def test_without_a_gpu_nothing_is_timed():
    done = forked.run(main)
    assert done.returncode == 2
    assert "no CUDA device is here" in done.stderr.splitlines()[-1]


def test_winners_take_the_place_of_former_ones_and_others_stay(tmp_path):
    path = tmp_path / "gpu.json"
    results = [{"key": "a", "winner": WINNER}, {"key": "b", "winner": WINNER}]
    path.write_text(json.dumps(merged(path, "gpu", results, "measurement")))
    again = merged(path, "gpu", [{"key": "b", "winner": None}], "measurement")
    assert again["tiles"] == {"a": WINNER}
    assert again["tried"] == [results[0], {"key": "b", "winner": None}], "what was tried for every key, the last time"


def test_candidates_may_be_stored():
    for tiles in (tiles for each in CANDIDATES.values() for tiles in each):
        assert tiles.tokens in ALLOWED["tokens"] and tiles.num_stages in ALLOWED["num_stages"]
        assert tiles.num_warps in ALLOWED["num_warps"]


def test_candidates_keep_the_other_sizes_of_what_is_stored():
    stored = Tiles(32, 1, 8, rank=64, pairs=16)
    found = beside(stored, CANDIDATES["decode"])
    assert found[0] == stored and len(set(found)) == len(found)
    assert all((tiles.rank, tiles.pairs, tiles.values) == (64, 16, None) for tiles in found)
    assert beside(None, CANDIDATES["decode"]) == CANDIDATES["decode"]
