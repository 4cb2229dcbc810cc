"""What every experiment does: compress the shipped model, judge it, print a table, write JSON."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.output import say, write_result
from benchmarks.quality.held_out import Judge, add_options, judge_of

Row = dict[str, Any]
Rows = Callable[[argparse.Namespace, Judge, Path], Iterator[Row]]


def conduct(parser: argparse.ArgumentParser, rows: Rows, table: Callable[[list[Row]], str]) -> None:
    """Measures the ``rows`` of an experiment in a temporary folder; what is there is written after each."""
    add_options(parser)
    options = parser.parse_args()
    judge, facts = judge_of(options)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="palu-experiment-") as scratch:
        for row in rows(options, judge, Path(scratch)):
            found.append(row)
            say(row)
            write_result(options.out, {"rows": found, **facts})
    print(table(found))
    print(f"\nDense: perplexity {facts['dense']['perplexity']:.2f}; KL divergence from it in brackets.")


def scored(row: Row) -> str:
    """Perplexity and, in brackets, KL divergence."""
    return "refused" if "refused" in row else f"{row['perplexity']:.2f} ({row['kl']:.4f})"
