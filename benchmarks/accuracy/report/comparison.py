"""Every score of the dense model beside those of the others: difference and recovery, paired where rows are known."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.accuracy.report.scores import Score
from benchmarks.accuracy.report.standard_errors import (
    independent_ratio_error,
    influence,
    ratio_influence,
    standard_error,
)

AVERAGED = ("longbench", "ruler")  # families of tasks whose average is reported too


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error; None where there is none."""

    value: float | None
    stderr: float | None


@dataclass(frozen=True)
class Entry:
    """One model's part of a line. Recovery is score / dense score, and the inverse where lower is better."""

    score: Estimate
    difference: Estimate
    recovery: Estimate
    paired: bool


@dataclass(frozen=True)
class Line:
    """One score of the dense model and of each other; None where a model was not measured."""

    task: str
    metric: str
    subset: dict[str, int]
    count: int
    headline: bool
    dense: Estimate
    others: tuple[Entry | None, ...]

    @property
    def title(self) -> str:
        return ", ".join([self.task, *(f"{name} {value}" for name, value in self.subset.items())])


def is_paired(dense: Score, other: Score) -> bool:
    """Whether both have rows, and of the same texts."""
    return bool(dense.rows) and len(dense.rows) == len(other.rows) and dense.weights == other.weights


def _influence(score: Score) -> np.ndarray:
    return influence(score.rows, score.weights)


def _difference_error(dense: Score, other: Score) -> float | None:
    if is_paired(dense, other):
        return standard_error(_influence(other) - _influence(dense))
    if dense.stderr is None or other.stderr is None:
        return None
    return math.hypot(dense.stderr, other.stderr)


def _ratio_error(top: Score, bottom: Score) -> float | None:
    if is_paired(top, bottom):
        return standard_error(ratio_influence(top.value, _influence(top), bottom.value, _influence(bottom)))
    return independent_ratio_error(top.value, top.stderr, bottom.value, bottom.stderr)


def entry(dense: Score, other: Score) -> Entry:
    """``other`` beside ``dense``. Without rows the errors are those of independent samples, which are larger."""
    top, bottom = (other, dense) if other.higher_is_better else (dense, other)
    recovery = Estimate(None, None)
    if bottom.value:
        recovery = Estimate(top.value / bottom.value, _ratio_error(top, bottom))
    difference = Estimate(other.value - dense.value, _difference_error(dense, other))
    return Entry(Estimate(other.value, other.stderr), difference, recovery, is_paired(dense, other))


def lines(dense: Sequence[Score], others: Sequence[tuple[str, Sequence[Score]]]) -> list[Line]:
    """A line per score of the dense model, then averages of families.

    Raises ValueError for a model that was measured with other settings.
    """
    found = [_matching(dense, name, scores) for name, scores in others]
    rows = [
        Line(
            score.task, score.metric, score.subset, score.count, score.is_headline,
            Estimate(score.value, score.stderr),
            tuple(entry(score, theirs[score.place]) if score.place in theirs else None for theirs in found),
        )
        for score in dense
    ]  # fmt: skip
    return [*rows, *_averages(dense, found)]


def _matching(dense: Sequence[Score], name: str, scores: Sequence[Score]) -> dict[tuple, Score]:
    keys = {score.place: score.key for score in dense}
    for score in scores:
        if keys.get(score.place, score.key) != score.key:
            raise ValueError(
                f"{score.title} of {name} was measured with other settings or data than the dense model's."
            )
    return {score.place: score for score in scores}


def _averages(dense: Sequence[Score], found: Sequence[Mapping[tuple, Score]]) -> Iterator[Line]:
    """The mean over the tasks of a family, each with the same weight, their errors independent."""
    for family in AVERAGED:
        tasks = [score for score in dense if score.task.startswith(f"{family}/") and not score.subset]
        if len(tasks) < 2:
            continue
        others = [
            [theirs[s.place] for s in tasks] if all(s.place in theirs for s in tasks) else None for theirs in found
        ]
        entries = tuple(_average_entry(tasks, theirs) if theirs else None for theirs in others)
        title, count = f"{family}, average of {len(tasks)} tasks", sum(score.count for score in tasks)
        yield Line(title, "score", {}, count, True, _average([(s.value, s.stderr) for s in tasks]), entries)


def _average(parts: Sequence[tuple[float, float | None]]) -> Estimate:
    errors = [error for _, error in parts]
    known = [error for error in errors if error is not None]
    stderr = math.hypot(*known) / len(parts) if len(known) == len(parts) else None
    return Estimate(math.fsum(value for value, _ in parts) / len(parts), stderr)


def _average_entry(dense: Sequence[Score], others: Sequence[Score]) -> Entry:
    pairs = list(zip(dense, others, strict=True))
    score = _average([(other.value, other.stderr) for other in others])
    difference = _average([(other.value - own.value, _difference_error(own, other)) for own, other in pairs])
    bottom = _average([(own.value, own.stderr) for own in dense]).value
    recovery = Estimate(None, None)
    if bottom and score.value is not None:
        ratio = score.value / bottom
        scaled = [standard_error(_influence(other) - ratio * _influence(own)) for own, other in pairs]
        recovery = Estimate(ratio, _average([(0.0, error and error / bottom) for error in scaled]).stderr)
    return Entry(score, difference, recovery, all(is_paired(*pair) for pair in pairs))


def as_json(models: Sequence[Mapping[str, Any]], rows: Sequence[Line]) -> dict[str, Any]:
    """The report as plain data. ``models`` begin with the dense one."""
    return {"dense": models[0], "models": list(models[1:]), "lines": [asdict(row) for row in rows]}
