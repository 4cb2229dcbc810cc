"""A new rank rule is one file and its name: added to a copy of the package, the command has it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import offline_compress

RULE = '''"""Ranks in proportion to the number of the layer."""

from offline_compress.plan import Plan
from offline_compress.ranks.allocation import by_matrix, ranks_by_importance
from offline_compress.ranks.rule import Calibration, Chosen, Rule
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV


class Depth(Rule):
    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        importance = [KV([1.0 + layer], [1.0 + layer]) for layer in range(plan.num_layers)]
        return Chosen(ranks_by_importance(plan, importance, by_matrix), {"rank_search": {"by": "depth"}})


RULE = Depth()
'''


def copied_package(directory: Path) -> Path:
    """A copy of the compressor with the rule: its file, and its name in the list."""
    package = Path(shutil.copytree(Path(offline_compress.__file__).parent, directory / "offline_compress"))
    (package / "ranks" / "rules" / "depth.py").write_text(RULE)
    names = package / "searches.py"
    before = names.read_text()
    after = before.replace('"matryoshka")', '"matryoshka", "depth")')
    assert after != before
    names.write_text(after)
    return package


def command(directory: Path, *arguments: str) -> str:
    """What the command of the copy prints; the rest of the repository is that of this process."""
    root = Path(offline_compress.__file__).parents[1]
    paths = os.pathsep.join([str(directory), str(root), os.environ.get("PYTHONPATH", "")])
    run = [sys.executable, "-m", "offline_compress", *arguments]
    found = subprocess.run(
        run, env=os.environ | {"PYTHONPATH": paths}, cwd=directory, check=True, stdout=subprocess.PIPE, text=True
    )
    return found.stdout


def test_the_command_has_it(tmp_path, dense):
    copied_package(tmp_path)
    assert "depth" in command(tmp_path, "--help").split("--search_method")[1].split("}")[0]
    options = ["--search=depth", "--objective=svd", "--rank-ratio=0.5"]
    dry = json.loads(command(tmp_path, str(dense("llama")), "out", *options, "--dry-run"))
    assert not dry["ranks_are_final"] and dry["predicted_layer_memory_bytes"] > 0
    command(tmp_path, str(dense("llama")), "out", *options)
    report = json.loads((tmp_path / "out" / "palu_report.json").read_text())
    # 1 to 2 of twice 64 ranks at half: 21 and 43, in steps of 16 that add up
    assert (report["search"], report["rank_search"]) == ("depth", {"by": "depth"})
    assert sum(report["rank_k"]) + sum(report["rank_v"]) == 128
    assert report["rank_k"] == report["rank_v"] == [16, 48]
