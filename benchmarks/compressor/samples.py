"""What are more calibration samples worth? ``python -m benchmarks.compressor.samples`` compresses the shipped model."""

import tempfile
from pathlib import Path

from benchmarks.common.commands import compress
from benchmarks.common.output import command_line, say, table, write_result
from benchmarks.common.shipped import HELD_OUT, MODEL
from benchmarks.quality.held_out import Judge, load, rows_of_text

SAMPLES, RATIO, ROWS, CONTEXT = (8, 16, 32, 64), 0.25, 6, 1024


def row(samples: int, judge: Judge) -> dict[str, float]:
    """A text with fewer samples gives as many as it has."""
    with tempfile.TemporaryDirectory(prefix="palu-samples-") as scratch:
        out = Path(scratch) / "out"
        report = compress(out, "--rank-ratio", RATIO, "--calib-samples", samples)
        return {"samples": samples, "calibration": report["calibration"]} | judge.score_checkpoint(out)


def main() -> None:
    options = command_line("benchmarks.compressor.samples", __doc__, "calibration_samples.json").parse_args()
    judge, rows = Judge(load(MODEL), rows_of_text(MODEL, HELD_OUT, CONTEXT, ROWS)), []
    for samples in SAMPLES:
        rows.append(row(samples, judge))
        say(rows[-1])
    write_result(options.out, {"rows": rows, "rank_ratio": RATIO, "context": CONTEXT, "rows_of_text": ROWS})
    print(table(["samples", "KL"], [[each["samples"], each["kl"]] for each in rows]))


if __name__ == "__main__":
    main()
