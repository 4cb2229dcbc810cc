"""``python -m benchmarks.accuracy run MODEL --out FILE`` and ``... compare DENSE OUT``.

``docs/guide/accuracy.md`` says what both do.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.accuracy.options import task_parser
from offline_compress.run.errors import CompressionError


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Accuracy through vLLM.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = [task_parser()]
    run = commands.add_parser("run", parents=shared, help="measure one model")
    run.add_argument("model", help="a dense or compressed checkpoint, or a hub id")
    run.add_argument("--codec", type=Path, help="a directory of palu-calibrate, with which the model is served")
    run.add_argument("--out", type=Path, required=True, help="JSON; what it has already is not measured again")
    compare = commands.add_parser("compare", parents=shared, help="one report of several models")
    compare.add_argument("dense", help="a result file (.json) or a model")
    compare.add_argument("others", nargs="+", metavar="OUT", help="result files or models, compressed")
    compare.add_argument(
        "--report", type=Path, default=Path("out/accuracy/report.html"), help="HTML; .json, PNG beside"
    )
    compare.add_argument("--images", type=Path, help="folder of the PNGs (default: that of the report)")
    compare.add_argument("--cache", type=Path, default=Path("out/accuracy"), help="where results of models are kept")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.command == "run":
            from benchmarks.accuracy.runner import run

            for score in run(options.model, options, options.out, options.codec):
                error = "" if score.stderr is None else f" ± {score.stderr:.4g}"
                print(f"{score.title}: {score.metric} {score.value:.4g}{error} ({score.count} rows)")
        else:
            from benchmarks.accuracy.compare import compare

            for line in filter(lambda line: line.headline, compare(options)):
                shares = [e.recovery.value if e else None for e in line.others]
                shown = ", ".join("n/a" if share is None else f"{share:.1%}" for share in shares)
                print(f"{line.title}: {line.metric} {line.dense.value:.4g}, recovery {shown}")
    except (ValueError, CompressionError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
