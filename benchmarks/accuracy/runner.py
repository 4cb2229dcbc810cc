"""Measures what a result file does not have yet."""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.accuracy.model_identity import context_of, describe, model_directory
from benchmarks.accuracy.options import tasks_of
from benchmarks.accuracy.report.scores import Score, key_of, read_scores, write_scores
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.common.provenance import provenance


def stored(path: Path, model: dict) -> list[Score]:
    """The scores of ``path``, if they are of this model. Raises ValueError where another's would be overwritten."""
    if not path.exists():
        return []
    theirs, scores = read_scores(path)
    decisive = ("fingerprint", "dtype", "kv_cache_dtype")
    if any(theirs[entry] != model[entry] for entry in decisive):
        raise ValueError(f"{path} is of another model or dtype ({theirs['name']}); give another --out.")
    return scores


def merged(old: list[Score], new: list[Score]) -> list[Score]:
    """``new`` after those of ``old`` that were not measured for the same place with other settings."""
    places = {score.place for score in new}
    replaced = {score.key for score in old if score.place in places}
    return [score for score in old if score.key not in replaced] + new


def run(model: str, options: argparse.Namespace, out: Path, codec: Path | None = None) -> list[Score]:
    """All scores of ``options`` for one model, stored ones included; ``out`` is written after every task.

    With a ``codec`` the model is served with it, and is another one to the reports.

    Raises ValueError, before vLLM starts, for whatever can be known by then.
    """
    directory = model_directory(model)
    context = context_of(directory)
    wanted = {key_of(task.settings()): task for task in tasks_of(options, model, context)}
    about = describe(model, directory, options.dtype, options.kv_cache_dtype, codec)
    scores = stored(out, about)
    have = {score.key for score in scores}
    missing = {key: task for key, task in wanted.items() if key not in have}
    if missing:
        engine = Engine(directory, options.max_length or context, options.dtype, options.kv_cache_dtype, codec)
        try:
            for key, task in missing.items():
                started = time.perf_counter()
                scores = merged(scores, task.run(engine, key))
                write_scores(out, about, scores, {"provenance": provenance()})
                print(f"{task.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        finally:
            engine.close()
    return [score for score in scores if score.key in wanted]
