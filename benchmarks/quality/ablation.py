"""What each choice of the compressor is worth at equal bytes: ``python -m benchmarks.quality.ablation``.

Every row is a run of ``palu-compress`` on the shipped model, judged as in ``benchmarks.quality.table``: perplexity and
KL divergence from the dense model on rows of held-out text, by transformers in float32. Rows of one ratio differ in the
choices named only. Writes a table (on stdout), a plot and JSON. Rows that the JSON already has, made with the same text
and samples, are kept with the commit that made them; ``--again`` makes them anew.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.commands import compress
from benchmarks.common.output import IMAGES, command_line, say, write_result
from benchmarks.common.provenance import provenance
from benchmarks.common.shipped import MODEL
from benchmarks.quality.ablation_plot import plot, table
from benchmarks.quality.held_out import Judge, add_options, judge_of

RATIOS = (0.125, 0.25, 0.5)


@dataclass(frozen=True)
class Arm:
    """Options of ``palu-compress``."""

    objective: str
    search: str
    group_size: int = 4  # of K and V: all KV heads of the shipped model, J-LRD
    refit: bool = False
    reorder: bool = False
    k_cost: float = 0.0
    group_size_v: int | None = None  # of V, where it differs

    def flags(self) -> list[str]:
        flags = ["--objective", self.objective, "--search", self.search, "--group-size", str(self.group_size)]
        flags += ["--refit" if self.refit else "--no-refit", *(["--reorder-heads"] if self.reorder else [])]
        flags += ["--group-size-v", str(self.group_size_v)] if self.group_size_v else []
        return [*flags, "--k-cost", str(self.k_cost)] if self.k_cost else flags

    def title(self) -> str:
        groups = (
            f"group {self.group_size}" if self.group_size_v is None else f"K {self.group_size} V {self.group_size_v}"
        )
        extras = [groups] + ["refit"] * self.refit + ["reordered"] * self.reorder
        extras += [f"key cost {self.k_cost:g}"] if self.k_cost else []
        return f"{self.objective}, {self.search}, {', '.join(extras)}"


PAPER = Arm("whiten", "fisher_uniform")
WEIGHTED = Arm("weighted", "energy", refit=True)  # the default
ARMS = (
    Arm("svd", "uniform"),
    Arm("whiten", "uniform"),
    Arm("weighted", "uniform"),
    Arm("svd", "uniform", refit=True),
    Arm("whiten", "uniform", refit=True),
    Arm("weighted", "uniform", refit=True),
    PAPER,
    Arm("weighted", "fisher_uniform", refit=True),
    Arm("weighted", "energy"),
    WEIGHTED,
    Arm("weighted", "sensitivity", refit=True),
    Arm("svd", "lorc"),
    Arm("weighted", "lorc", refit=True),
    Arm("weighted", "matryoshka", refit=True),
    Arm("weighted", "energy", refit=True, k_cost=3.0),
    Arm("weighted", "energy", group_size=2, refit=True),
    Arm("weighted", "energy", group_size=2, refit=True, reorder=True),
    Arm("weighted", "energy", group_size=1, refit=True),
    Arm("weighted", "energy", group_size=2, group_size_v=4, refit=True),
    Arm("weighted", "energy", group_size=1, group_size_v=4, refit=True),
    Arm("weighted", "energy", group_size=4, group_size_v=2, refit=True),
)


def judged(arm: Arm, ratio: float, samples: int, dtype: str, judge: Judge) -> dict[str, Any]:
    """The row of one arm."""
    with tempfile.TemporaryDirectory(prefix="palu-ablation-") as scratch:
        out = Path(scratch) / "out"
        shared = ["--rank-ratio", ratio, "--calib-samples", samples, "--dtype", dtype]
        report, score = compress(out, *shared, *arm.flags()), judge.score_checkpoint(out)
    kept = ("bytes_per_token", "rank_k", "rank_v", "rebuild_work_per_token", "seconds")
    facts = {"ratio": ratio, "arm": arm.title(), "paper": arm == PAPER, "weighted": arm == WEIGHTED}
    facts["commit"] = provenance()["commit"]
    return facts | {name: report[name] for name in kept} | score


def known_rows(path: Path, facts: dict[str, Any]) -> dict[tuple[float, str], dict[str, Any]]:
    """Rows of a result file by ratio and title; none where it was made with other ``facts``."""
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    same = all(result.get(name) == value for name, value in facts.items())
    return {(row["ratio"], row["arm"]): row for row in result["rows"]} if same else {}


def main() -> None:
    parser = command_line("benchmarks.quality.ablation", __doc__, "ablation.json")
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS)
    add_options(parser)
    parser.add_argument("--plot", type=Path, default=IMAGES / "ablation.png")
    parser.add_argument("--again", action="store_true", help="make rows anew that the result file already has")
    options = parser.parse_args()
    dtype = json.loads((MODEL / "config.json").read_text())["dtype"]
    judge, facts = judge_of(options)
    known = {} if options.again else known_rows(options.out, facts)
    rows: list[dict[str, Any]] = []
    for ratio in options.ratios:
        for arm in ARMS:
            row = known.get((ratio, arm.title())) or judged(arm, ratio, options.calib_samples, dtype, judge)
            rows.append(row)
            say(row)
        write_result(options.out, {"rows": rows, **facts})
    plot(rows, facts["dense"]["perplexity"], options.plot)
    print(table(rows, facts["dense"]["perplexity"]))


if __name__ == "__main__":
    main()
