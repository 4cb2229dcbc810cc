"""Do layers that share a cache (KVSharer) and low rank together save bytes better than low rank alone?

``python -m benchmarks.experiments.shared_layers``. A row is what ``palu-compress`` makes of the shipped model for a
number of bytes with some layers shared, so that rows of one budget hold the same bytes.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks.common.commands import CommandError, compress
from benchmarks.common.output import command_line
from benchmarks.common.output import table as markdown
from benchmarks.experiments.harness import Row, conduct, scored
from benchmarks.quality.held_out import Judge
from palu_vllm.format.checkpoint import read_config

BUDGETS, SHARED = (2, 4, 6), (0, 1, 2)


def measured(out: Path, judge: Judge) -> Row:
    _, palu, geometry = read_config(out)
    sources = [source for layer, source in enumerate(palu.source_layers or ()) if source != layer]
    facts = {"sources": sources, "bytes_per_token": palu.bytes_per_token(geometry, "float16")}
    return facts | judge.score_checkpoint(out)


def rows(options: argparse.Namespace, judge: Judge, scratch: Path) -> Iterator[Row]:
    for budget, shared in product(options.budgets, options.shared):
        out = scratch / f"{budget}-{shared}"
        asked = ["--target-compression", budget, "--calib-samples", options.calib_samples]
        try:
            compress(out, *asked, *(["--share-layers", shared] if shared else []))
            yield {"budget": budget, "shared": shared} | measured(out, judge)
        except CommandError as error:
            yield {"budget": budget, "shared": shared, "refused": str(error)}


def table(rows: Sequence[Row]) -> str:
    """Shared layers down, budgets across."""
    found = {(row["shared"], row["budget"]): scored(row) for row in rows}
    shared, budgets = (list(dict.fromkeys(place[i] for place in found)) for i in (0, 1))
    lines = [[each, *(found[each, budget] for budget in budgets)] for each in shared]
    return markdown(["layers shared", *(f"{budget:g}x" for budget in budgets)], lines)


def main() -> None:
    parser = command_line("benchmarks.experiments.shared_layers", __doc__, "shared_layers.json")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="times fewer bytes than dense")
    parser.add_argument("--shared", type=int, nargs="+", default=SHARED, help="layers that read another's cache")
    conduct(parser, rows, table)


if __name__ == "__main__":
    main()
