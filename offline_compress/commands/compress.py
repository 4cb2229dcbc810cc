"""``palu-compress MODEL OUT``: command line, messages and exit codes."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from offline_compress.commands.command import cache_sentence, run_command, serve_command
from offline_compress.commands.generator import add_options, command_parser
from offline_compress.options import CALIBRATION, CompressOptions

NAME = "palu-compress"
EPILOG = """\
Names in the style --param_ratio_target are those of the paper's reference implementation and mean the same.
Group size 1 is the paper's M-LRD, the number of KV heads its J-LRD, anything between its G-LRD.

Rank search: ranks add up to the ratio exactly, in multiples of 16 (fewer for tiny models). `uniform` gives every
projection the same rank. `fisher_uniform` weighs each K and V projection by its mean Fisher information. `fisher`
weighs each group of heads, applies minimum and maximum rank to each group, and gives the projection the mean of its
groups: the checkpoint has one rank per layer for K and one for V (the reference kept one per group). Both Fisher
searches need the whole model in float32 in memory; with the others it stays below three layers. See --dry-run.
`energy` gives each rank to whichever projection saves most of its objective's error with it, `sensitivity` too, with
errors multiplied by what truncating one projection at a time does to the model's answers. `lorc` (LoRC) gives deeper
layers fewer ranks, by the condition numbers of the weights. `matryoshka` (MatryoshkaKV) lowers ranks step by step, each
time those of the projection that the model's answers need least: many passes, with all factors in memory. See
docs/concepts/rank-rules.md.

Exit codes: 0 done, 2 input that cannot be compressed, 130 interrupted. After an error nothing is left behind, unless
--resume was given. A run that is killed leaves OUT.tmp-work; the same command with --resume goes on behind its last
layer, to the same bytes. Only palu_report.json, with times, memory and provenance, differs.
"""


def parser() -> ArgumentParser:
    """Returns the options of the command."""
    made = command_parser(
        NAME,
        "MODEL OUT [options]",
        "Write a checkpoint whose KV cache holds low-rank latents (Palu).",
        EPILOG,
    )
    made.add_argument("paths", nargs="*", metavar="PATH", help="MODEL OUT, or only OUT when --model_id is given")
    made.add_argument("--model_id", metavar="MODEL", help="model directory or hub id, instead of MODEL")
    sections = add_options(made, CompressOptions)
    sections[CALIBRATION].add_argument(
        "--calib-samples", type=int, metavar="N", help="sets both sample counts, where they are not given themselves"
    )
    return made


def parse_options(argv: Sequence[str] | None) -> CompressOptions:
    """Raises SystemExit(2) for arguments that argparse refuses, CompressionError for values that make no sense."""
    made = parser()
    given = vars(made.parse_intermixed_args(argv))
    paths = [*([given.pop("model_id")] if "model_id" in given else []), *given.pop("paths", [])]
    if "calib_data" in given:
        given["calib_data"], rest = _data_and_paths(given["calib_data"], 2 - len(paths))
        paths += rest
    if len(paths) != 2:
        made.error(f"got {len(paths)} paths ({', '.join(paths)}); expected MODEL OUT, or --model_id MODEL and OUT")
    if "rank_ratio" in given and given.keys() & {"target_compression", "bytes_per_token"}:
        made.error("a budget chooses the ranks itself; give --rank-ratio or a budget")
    if "calib_samples" in given:
        both = given.pop("calib_samples")
        given = {"whiten_samples": both, "fisher_samples": both} | given
    return CompressOptions(model=paths[0], out=Path(paths[1]), **given)


def _data_and_paths(words: list[str], missing: int) -> tuple[tuple[str, ...] | str, list[str]]:
    """Parts the words behind ``--calib-data``: as many paths as are missing stand at their end."""
    behind = max(1, len(words) - max(0, missing))
    data = tuple(words[:behind])
    return data if len(data) > 1 else data[0], words[behind:]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    kept = "the work is kept for --resume." if "--resume" in arguments else "nothing was written."
    return run_command(NAME, partial(_compress, arguments), kept)


def _compress(arguments: Sequence[str]) -> None:
    """The compression itself; torch and transformers are imported only here, so that ``--help`` is quick."""
    options = parse_options(arguments)
    from offline_compress.pipeline import run
    from offline_compress.run.memory import map_large_blocks
    from offline_compress.run.progress import shown_on

    map_large_blocks()
    with shown_on(sys.stderr) as on_event:
        result = run(options, on_event)
    print(json.dumps(result, indent=2) if options.dry_run else _summary(options, result))


def _summary(options: CompressOptions, report: dict) -> str:
    chosen = _chosen(report) if "budget" in report else ""
    return (
        chosen
        + _sharing(report)
        + (
            f"{options.out}: {cache_sentence(report)}. Keys are rebuilt with "
            f"{report['rebuild_work_per_token']} multiplications per cached token, {report['seconds']:.0f} s, "
            f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB. "
            f"Serve it: {serve_command(options.out)}"
        )
    )


def _sharing(report: dict) -> str:
    """Which layers hold no cache."""
    pairs = [f"{layer} reads {source}" for layer, source in enumerate(report["source_layers"] or ()) if layer != source]
    if not pairs:
        return ""
    found = report.get("layer_sharing")
    similarity = f"; cosine of the last hidden states {found['similarity']:.3f}" if found else ""
    return f"Layers that share: {', '.join(pairs)}{similarity}.\n"


def _chosen(report: dict) -> str:
    """What a budget led to, and what plain bits would."""
    ranks = [f"{side} ranks {min(report[rank])} to {max(report[rank])} in {_bits(report[tiers])} bits"
             for side, rank, tiers in (("key", "rank_k", "tiers_k"), ("value", "rank_v", "tiers_v"))]  # fmt: skip
    plain = report["budget"]["plain_bits_per_token_and_head"]
    others = [f"{name} {facts['predicted_error']:.2g} at {facts['bytes_per_token']:.0f} bytes"
              for name, facts in plain.items()]  # fmt: skip
    return (
        f"Chosen: {', '.join(ranks)}; predicted error of attention {report['budget']['predicted_error']:.2g} "
        f"at {report['bytes_per_token']} bytes. Plain bits per token and head: {', '.join(others)}.\n"
    )


def _bits(tiers: list[dict]) -> str:
    return "/".join(str(tier["bits"]) for tier in tiers)
