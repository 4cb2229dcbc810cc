"""Dense against compressed: measures what has not been measured yet, and writes one report."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.accuracy.model_identity import context_of, describe, model_directory
from benchmarks.accuracy.options import flags_of, tasks_of
from benchmarks.accuracy.report.comparison import Line, as_json, lines
from benchmarks.accuracy.report.page import page
from benchmarks.accuracy.report.plots import needle_maps, recovery_plot
from benchmarks.accuracy.report.scores import Score, key_of, read_scores
from benchmarks.common.provenance import provenance


def measured(given: str, options: argparse.Namespace, cache: Path) -> tuple[dict, list[Score]]:
    """What a result file says; of a model what ``cache`` has or a run, in a process of its own, measures now.

    Raises ValueError for what is neither, and for a run that fails.
    """
    if given.endswith(".json"):
        return read_scores(Path(given))
    directory = model_directory(given)
    wanted = {key_of(task.settings()) for task in tasks_of(options, given, context_of(directory))}
    about = describe(given, directory, options.dtype, options.kv_cache_dtype)
    file = cache / f"{about['fingerprint']}-{options.dtype}-{options.kv_cache_dtype}.json"
    command = [sys.executable, "-m", "benchmarks.accuracy", "run", given, "--out", str(file), *flags_of(options)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{given} could not be measured: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    _, scores = read_scores(file)
    return about, [score for score in scores if score.key in wanted]


def compare(options: argparse.Namespace) -> list[Line]:
    """Writes the report (HTML), the same as .json beside it, and pictures named after it."""
    results = [measured(given, options, options.cache) for given in (options.dense, *options.others)]
    models, scores = zip(*results, strict=True)
    rows = lines(scores[0], [(model["name"], own) for model, own in results[1:]])
    pictures = {"needle": needle_maps(models, scores), "recovery": recovery_plot(models, rows)}
    report, images = options.report, options.images or options.report.parent
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(page(models, rows, **pictures), encoding="utf-8")
    content = as_json(models, rows) | {"provenance": provenance()}
    report.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    images.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        if png:
            (images / f"{report.stem}_{name}.png").write_bytes(png)
    return rows
