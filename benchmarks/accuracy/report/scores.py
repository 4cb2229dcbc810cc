"""The results format: a ``Score`` per task, metric and subset, with its rows, and the file that holds those of a model.

A score is found again by ``key``, a hash of everything that decides it but the model; a file by what the model is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.accuracy.report import standard_errors

FORMAT = 1
VERSION = 1  # of the tasks: to be raised when prompts or metrics change, so that nothing old is taken for new
PAIRED, LM_EVAL = "linearized over rows", "reported by lm-eval"


@dataclass(frozen=True)
class Score:
    """A number with its standard error. ``rows`` are what it was made of, in the order of the data."""

    key: str
    task: str  # "perplexity", "needle", "ruler/niah_single_1", "longbench/hotpotqa", "lm-eval/arc_easy"
    metric: str
    subset: dict[str, int]  # {"context": 1024}, {"length": 2048, "depth": 50}; empty: all of the task
    value: float
    stderr: float | None
    method: str
    count: int
    higher_is_better: bool = True
    rows: list[float] = field(default_factory=list)  # scores, or losses in nats; empty if only the value is known
    weights: list[int] | None = None  # tokens of each row, for perplexity

    @property
    def place(self) -> tuple:
        return (self.task, self.metric, tuple(sorted(self.subset.items())))

    @property
    def title(self) -> str:
        return ", ".join([self.task, *(f"{name} {value}" for name, value in self.subset.items())])

    @property
    def is_headline(self) -> bool:
        """Whether the score stands for a whole task, not for one of its lengths or depths."""
        return not self.subset or self.task == "perplexity"


def key_of(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings, whatever the model."""
    return hashlib.sha256(json.dumps({"version": VERSION, **settings}, sort_keys=True).encode()).hexdigest()[:16]


def mean_score(key: str, task: str, metric: str, rows: Sequence[float], subset: dict[str, int] | None = None) -> Score:
    """The mean of row scores."""
    rows = [round(float(row), 6) for row in rows]
    stderr = standard_errors.standard_error(standard_errors.influence(rows))
    return Score(key, task, metric, subset or {}, standard_errors.mean(rows), stderr, PAIRED, len(rows), rows=rows)


def subset_scores(
    key: str, task: str, metric: str, rows: Sequence[float], subsets: Sequence[dict[str, int]]
) -> list[Score]:
    """The mean over all rows, then that of each subset, in the order in which they first appear."""
    unique = list({json.dumps(subset): subset for subset in subsets}.values())
    parts = [[row for row, own in zip(rows, subsets, strict=True) if own == subset] for subset in unique]
    return [
        mean_score(key, task, metric, rows),
        *(mean_score(key, task, metric, part, subset) for part, subset in zip(parts, unique, strict=True)),
    ]


def perplexity_score(key: str, context: int, losses: Sequence[float], tokens: Sequence[int]) -> Score:
    """Perplexity of rows with summed ``losses`` in nats, its error from log space."""
    losses = [round(float(loss), 4) for loss in losses]
    value = standard_errors.perplexity(losses, tokens)
    stderr = standard_errors.standard_error(standard_errors.influence(losses, tokens))
    return Score(
        key, "perplexity", "perplexity", {"context": context}, value, stderr, PAIRED, len(losses), False, losses,
        list(tokens),
    )  # fmt: skip


def write_scores(path: Path, model: Mapping[str, Any], scores: Iterable[Score], facts: Mapping[str, Any]) -> None:
    """JSON with one line per score, so that a diff shows which changed."""
    lines = ",\n  ".join(json.dumps(asdict(score)) for score in scores)
    head = ",\n ".join(f'"{name}": {json.dumps(value)}' for name, value in (("model", model), *facts.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n "format": {FORMAT},\n {head},\n "scores": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def read_scores(path: Path) -> tuple[dict[str, Any], list[Score]]:
    """The model and its scores. Raises ValueError for a file that ``write_scores`` has not written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, expected {FORMAT}")
        return content["model"], [Score(**score) for score in content["scores"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result file of benchmarks.accuracy ({error}).") from error
