"""Needles over depths and lengths, for a method at one budget. Its knobs are fitted again to each length, within the
family of settings that was chosen: a number of kept tokens fits one length only.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.accuracy.report.plots import needle_maps
from benchmarks.accuracy.report.scores import subset_scores
from benchmarks.methods.compare.bench import Bench, Row
from benchmarks.methods.compare.search import largest_fitting
from benchmarks.methods.families import FAMILIES
from benchmarks.methods.harness import retrieval
from benchmarks.methods.harness.interface import Method
from benchmarks.methods.harness.prompts import Arm, Prompt
from benchmarks.methods.harness.retrieval import DEPTHS, Quiz


def refitted(name: str, family: int, prompt: Prompt, budget: float, learn: Callable[[Method], Method]) -> Method | None:
    """The largest member of a method's family that meets the budget for ``prompt``; None if none does."""
    same = list(FAMILIES[name](prompt.layers[0], len(prompt.row)))[family]
    allowed = prompt.dense_nbytes() / budget
    return largest_fitting(same, learn, lambda method: prompt.nbytes(method) <= allowed)


class NeedleMap:
    """The questions of each length of ``--map-lengths``, ``--map-samples`` at every depth."""

    def __init__(self, options: argparse.Namespace, bench: Bench) -> None:
        """Raises ValueError for a length that leaves no haystack."""
        self.quizzes = {}
        for length in options.map_lengths:
            grid = ((length,), DEPTHS, options.map_samples, options.seed)
            asked = retrieval.needles(bench.tokens, str(options.text), options.needle_style, *grid)
            self.quizzes[length] = Quiz(bench.dense, bench.tokens, asked, bench.dtype)

    def row(self, at: Callable[[Prompt], Arm | None]) -> Row:
        """``needle_map``, a cell per question; a length at which ``at`` finds no knobs is left out."""
        cells: list[dict[str, Any]] = []
        for quiz in self.quizzes.values():
            if arm := at(quiz.prompts[0]):
                pairs = zip(quiz.questions.passages, quiz.found(arm), strict=True)
                cells += [passage.subset | {"found": found} for passage, found in pairs]
        return {"needle_map": cells}


def picture(rows: Sequence[Row]) -> bytes | None:
    """PNG with a map for each row that has one; None without any."""
    mapped = [row for row in rows if row.get("needle_map")]
    scores = []
    for row in mapped:
        subsets = [{"length": cell["length"], "depth": cell["depth"]} for cell in row["needle_map"]]
        scores.append(subset_scores("", "needle", "found", [cell["found"] for cell in row["needle_map"]], subsets))
    return needle_maps([{"name": f"{row['method']}, {row['budget']:g}x"} for row in mapped], scores)
