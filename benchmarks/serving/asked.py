"""What benchmarks that compare arms are asked alike, and how they end."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.output import table, write_result
from benchmarks.common.shipped import CALIBRATION, MODEL
from benchmarks.serving.arms import HELP


def add_arms(parser: argparse.ArgumentParser, arms: str) -> None:
    """Which arms, of which model; those in ``arms`` unless asked otherwise."""
    add = parser.add_argument
    add("--arms", default=arms, help=HELP)
    add("--model", type=Path, default=MODEL, help="the dense model (default: the shipped one)")
    add("--calib-data", type=Path, default=CALIBRATION, help="of the arms that are made here")


def run(
    measure: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace, columns: Sequence[str]
) -> None:
    """Writes what is measured and prints the ``columns`` of its rows. A ValueError is the sentence it ends with."""
    try:
        result = measure(options)
    except ValueError as error:
        sys.exit(str(error))
    write_result(options.out, result)
    print(table(columns, [[row[column] for column in columns] for row in result["rows"]]))
