"""``python -m benchmarks.methods list``, ``measure --method kivi:k_bits=4``, ``compare`` or ``tokens-or-bits``."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.provenance import provenance
from benchmarks.methods.compare import needle_map, tokens_or_bits
from benchmarks.methods.compare import plots as compare_plots
from benchmarks.methods.compare import report as compare_report
from benchmarks.methods.compare.bench import dtype_of
from benchmarks.methods.compare.results import Results, settings_of
from benchmarks.methods.compare.run import compared
from benchmarks.methods.harness.measure import Judge
from benchmarks.methods.options import PALU, parser
from benchmarks.methods.projected.palu import PaluCache
from benchmarks.methods.registry import METHODS, described, knobs_of, parse_method
from benchmarks.quality.held_out import rows_of_text


def listing() -> str:
    """Every method with the first line of its documentation and its knobs."""
    lines = []
    for name, method in METHODS.items():
        about = " ".join((sys.modules[method.__module__].__doc__ or "").split("\n\n")[0].split())
        knobs = ", ".join(f"{knob}={field.default}" for knob, field in knobs_of(method).items())
        lines += [f"{name}: {about}", f"    {knobs or 'no knobs'}"]
    lines += [f"{PALU}=DIR: the cache of a checkpoint that palu-compress wrote to DIR", "    as in the checkpoint"]
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> list[dict]:
    """One row per arm of ``--method``, the dense cache first."""
    dtype = dtype_of(options.model)
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    context = options.prompt_tokens + options.new_tokens
    judge = Judge(dense, rows_of_text(options.model, options.text, context, options.rows), options.prompt_tokens)
    calibration = rows_of_text(options.model, options.calib_data, context, options.calib_samples)
    rows = []
    for each in (parse_method("dense"), *options.method):
        if isinstance(each, Path):
            model, own = AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval(), dtype_of(each)
            rows.append({"method": f"{PALU}={each.name}"} | judge.score(model, partial(PaluCache, own)))
        else:
            score = judge.score_method(dense, each.calibrated(dense, calibration), dtype)
            rows.append({"method": described(each)} | score)
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        content = {"rows": rows, "settings": settings_of(options), "provenance": provenance()}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return rows


def file_of(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def results_of(options: argparse.Namespace, identity: tuple[str, ...]) -> Results:
    return Results(options.out and file_of(options.out, ".json"), settings_of(options), identity)


def compare(options: argparse.Namespace) -> None:
    """Tables on standard output; with ``--out`` rows, a page and pictures, of all rows that the file has."""
    results = results_of(options, ("method", "budget"))
    for row in compared(options, results):
        print(json.dumps({name: value for name, value in row.items() if name != "needle_map"}), file=sys.stderr)
    rows = list(results.rows.values())
    print(compare_report.tables(rows))
    if options.out:
        plots = {"": compare_plots.against_bytes(rows), "_bars": compare_plots.bars(rows)}
        plots |= {"_needles": maps} if (maps := needle_map.picture(rows)) else {}
        for name, png in plots.items():
            file_of(options.out, f"{name}.png").write_bytes(png)
        titles = {"": "Scores against bytes", "_bars": "Methods at each budget", "_needles": "Needles"}
        facts, pictures = results.settings | results.facts, {titles[name]: png for name, png in plots.items()}
        file_of(options.out, ".html").write_text(compare_report.page(rows, facts, pictures), encoding="utf-8")


def answer_tokens_or_bits(options: argparse.Namespace) -> None:
    """Rows on standard output; with ``--out`` also a file of them and a picture."""
    results = results_of(options, tokens_or_bits.IDENTITY)
    for row in tokens_or_bits.answered(options, results):
        print(json.dumps(row), flush=True)
    if options.out:
        file_of(options.out, ".png").write_bytes(tokens_or_bits.plot(list(results.rows.values())))


def main() -> None:
    options = parser().parse_args()
    try:
        if options.command == "list":
            print(listing())
        else:
            COMMANDS[options.command](options)
    except ValueError as error:
        sys.exit(f"error: {error}")


COMMANDS = {"measure": measure, "compare": compare, "tokens-or-bits": answer_tokens_or_bits}

if __name__ == "__main__":
    main()
