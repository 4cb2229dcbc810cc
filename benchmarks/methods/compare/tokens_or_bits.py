"""QPruningKV's question: at equal bytes, few tokens in many bits or many tokens in few?

Each of its four pruning methods keeps as many tokens of the prompt as the budget has room for, in 16, 8, 4 and 2 bits.
Scales and minima count, so that 4 bits buy a little less than 4 times the tokens of 16.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

from benchmarks.common.output import png_of, pyplot
from benchmarks.methods.compare.bench import Bench, Row
from benchmarks.methods.compare.plots import SCORES, shown
from benchmarks.methods.compare.progress import Progress
from benchmarks.methods.compare.results import Results
from benchmarks.methods.compare.search import largest_fitting
from benchmarks.methods.families import SMALLEST_CAPACITY, Family, groups
from benchmarks.methods.harness.interface import Layer
from benchmarks.methods.harness.prompts import method_arm
from benchmarks.methods.kept.qpruningkv import PRUNING, QPruningKV
from benchmarks.methods.registry import described

PRUNINGS = ("SnapKV", "PyramidKV", "H2O", "StreamingLLM")
FULL = 16  # bits
BITS = (FULL, 8, 4, 2)
IDENTITY = ("budget", "pruning", "bits")


def family(pruning: str, bits: int, layer: Layer, tokens: int) -> Family:
    """A pruning method at a precision, by how many tokens it keeps."""
    make = partial(QPruningKV, method=pruning, nbits=bits, group_size=max(groups(layer)))
    kind = PRUNING[pruning] if bits == FULL else make
    return Family(lambda kept: kind(max_capacity_prompts=kept), SMALLEST_CAPACITY, tokens)


def measured(row: Row, bench: Bench) -> Row:
    """The most tokens within the budget, and what they are worth."""
    tokens = len(bench.prompt.row)
    allowed = bench.prompt.dense_nbytes() / row["budget"]
    of_row = family(row["pruning"], row["bits"], bench.prompt.layers[0], tokens)
    method = largest_fitting(of_row, bench.learn, lambda each: bench.prompt.nbytes(each) <= allowed)
    if method is None:
        return {"unreachable": f"{SMALLEST_CAPACITY} tokens are more bytes"}
    score = bench.score(method_arm(bench.dense, method, bench.dtype))
    return {"setting": described(method), "tokens": vars(method)["max_capacity_prompts"]} | score


def answered(options: argparse.Namespace, results: Results) -> Iterator[Row]:
    """A row per budget, pruning method and precision; what ``results`` has is kept."""
    bench, wanted = Bench.of(options), list(product(options.budgets, PRUNINGS, BITS))
    progress = Progress(len(wanted))
    for identity in wanted:
        row = dict(zip(IDENTITY, identity, strict=True))
        kept = None if options.rerun else results.get(row)
        yield kept or results.measure(row, partial(measured, row, bench))
        progress.step(f"{row['pruning']} in {row['bits']} bits at {row['budget']:g}x", kept is not None)


def tick(bits: int, budget: float, rows: Sequence[Row]) -> str:
    """Bits, and below them the fewest and most tokens that a pruning method keeps in them at a budget."""
    kept = [row["tokens"] for row in rows if (row["bits"], row["budget"]) == (bits, budget)]
    if not kept:
        return f"{bits}"
    return f"{bits}\n{min(kept)}" if min(kept) == max(kept) else f"{bits}\n{min(kept)} to {max(kept)}"


def plot(rows: Sequence[Row]) -> bytes:
    """PNG: scores against bits at equal bytes, a row of panels per budget and a line per pruning method."""
    reached = [row for row in rows if "unreachable" not in row]
    scores, budgets = shown(reached, tuple(SCORES)), list(dict.fromkeys(row["budget"] for row in reached))
    size = (3.6 * len(scores), 3.2 * len(budgets))
    figure, grid = pyplot.subplots(
        len(budgets), len(scores), figsize=size, dpi=120, squeeze=False, layout="constrained"
    )
    for (budget, score), axes in zip(product(budgets, scores), grid.flat, strict=True):
        for pruning in PRUNINGS:
            own = [row for row in reached if (row["budget"], row["pruning"]) == (budget, pruning)]
            places = [BITS.index(row["bits"]) for row in own]
            axes.plot(places, [row[score] for row in own], marker="o", label=pruning)
        axes.set_xticks(range(len(BITS)), [tick(bits, budget, reached) for bits in BITS])
        axes.set(ylabel=SCORES[score], xlabel="bits, and tokens kept of the prompt")
        axes.set_title(f"{budget:g} times fewer bytes", fontsize=9)
    grid.flat[0].legend(fontsize="small")
    return png_of(figure)
