"""Every method at the same bytes: knobs searched for a budget, then scored on held-out text, palu among them."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.common.commands import CommandError, compress
from benchmarks.methods.compare.bench import Bench, Row, dtype_of
from benchmarks.methods.compare.needle_map import NeedleMap, refitted
from benchmarks.methods.compare.progress import Progress
from benchmarks.methods.compare.results import Results
from benchmarks.methods.compare.search import closest, fitting_by_family
from benchmarks.methods.families import FAMILIES
from benchmarks.methods.harness.dense import Dense
from benchmarks.methods.harness.interface import Method, expect
from benchmarks.methods.harness.prompts import Arm, Prompt, cache_arm, method_arm
from benchmarks.methods.projected.palu import PaluCache
from benchmarks.methods.registry import described
from benchmarks.quality.held_out import load

DENSE = {"method": "dense", "budget": 1.0}


def palu_arm(options: argparse.Namespace, budget: float) -> Arm | str:
    """The checkpoint that ``palu-compress`` makes for the budget, or why it makes none."""
    with tempfile.TemporaryDirectory(prefix="palu-methods-") as scratch:
        out = Path(scratch) / "out"
        asked = ["--calib-samples", options.calib_samples, "--target-compression", budget]
        try:
            compress(out, *asked, model=options.model, calibration=options.calib_data)
        except CommandError as error:
            return str(error)
        model = load(out)
        dtype = dtype_of(out)
    return cache_arm(model, lambda: PaluCache(dtype))


def measured_palu(options: argparse.Namespace, budget: float, bench: Bench, cells: NeedleMap | None) -> Row:
    arm = palu_arm(options, budget)
    if isinstance(arm, str):
        return {"unreachable": arm}
    row = {"setting": f"palu-compress --target-compression {budget:g}"} | bench.score(arm)
    return row | (cells.row(lambda prompt: arm) if cells else {})


def measured_method(name: str, budget: float, bench: Bench, cells: NeedleMap | None) -> Row:
    """Knobs are chosen on calibration text."""
    families = list(FAMILIES[name](bench.prompt.layers[0], len(bench.prompt.row)))
    found = fitting_by_family(families, bench.learn, bench.prompt, budget)
    if not found:
        return {"unreachable": "no setting of its knobs is that small"}
    chosen = closest(list(found.values()), bench.tuner, bench.dense, bench.dtype)
    family = next(index for index, method in found.items() if method is chosen)

    def at(prompt: Prompt) -> Arm | None:
        method = refitted(name, family, prompt, budget, bench.learn)
        return arm_of(method, bench) if method else None

    row = {"setting": described(chosen)} | bench.score(arm_of(chosen, bench))
    return row | (cells.row(at) if cells else {})


def arm_of(method: Method, bench: Bench) -> Arm:
    return method_arm(bench.dense, method, bench.dtype)


def measured_dense(bench: Bench, cells: NeedleMap | None) -> Row:
    arm = arm_of(Dense(), bench)
    return {"setting": "dense"} | bench.score(arm) | (cells.row(lambda prompt: arm) if cells else {})


def jobs(options: argparse.Namespace, bench: Bench) -> Iterator[tuple[Row, bool, Callable[[], Row]]]:
    """The identity of each row, whether it has a needle map, and how to measure it; the dense cache first."""
    cells = NeedleMap(options, bench) if options.needle_map else None
    yield DENSE, cells is not None, lambda: measured_dense(bench, cells)
    for budget in options.budgets:
        own = cells if budget == options.needle_map else None
        for name in options.methods:
            row = {"method": name, "budget": budget}
            if name == "palu":
                yield row, own is not None, partial(measured_palu, options, budget, bench, own)
            else:
                yield row, own is not None, partial(measured_method, name, budget, bench, own)


def compared(options: argparse.Namespace, results: Results) -> Iterator[Row]:
    """A row per method and budget. What ``results`` has is kept, unless ``options.rerun`` or its map is missing.

    A method that cannot meet a budget has a row that says so. Raises ValueError for a map of no budget of the run.
    """
    budgets = ", ".join(f"{budget:g}" for budget in options.budgets)
    known = options.needle_map in (None, *options.budgets)
    expect(known, f"--needle-map {options.needle_map} is none of --budgets {budgets}")
    bench = Bench.of(options)
    progress = Progress(1 + len(options.budgets) * len(options.methods))
    for row, mapped, measured in jobs(options, bench):
        kept = None if options.rerun else results.get(row)
        if kept and mapped and not {"needle_map", "unreachable"} & kept.keys():
            kept = None
        yield kept or results.measure(row, measured)
        progress.step(f"{row['method']} at {row['budget']:g}x", kept is not None)
