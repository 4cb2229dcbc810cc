"""``palu-compress MODEL OUT``: command line, messages and exit codes."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from offline_compress.commands.command import run_command
from offline_compress.options import (
    DEFAULT_SHARE_THRESHOLD,
    DTYPES,
    OBJECTIVES,
    SEARCHES,
    VALUE_PATHS,
    CompressOptions,
    LayerPairs,
)
from offline_compress.run.versions import add_version

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


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="palu-compress",
        usage="palu-compress MODEL OUT [options]",
        description="Write a checkpoint whose KV cache holds low-rank latents (Palu).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("paths", nargs="+", metavar="PATH", help="MODEL OUT, or only OUT when --model_id is given")
    made.add_argument("--model_id", metavar="MODEL", help="model directory or hub id, instead of MODEL")
    _add_budget(made.add_argument_group("budget", "instead of --rank-ratio"))
    _add_compression(made.add_argument_group("compression"))
    _add_quantization(made.add_argument_group("quantization of latents in the cache"))
    _add_calibration(made.add_argument_group("calibration"))
    _add_running(made.add_argument_group("running"))
    add_version(made)
    return made


def _add_budget(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target-compression", type=float, metavar="X",
        help="times fewer bytes per token than the dense model, like 6: ranks per layer, bits and tiers are chosen for "
        "the least predicted error on the calibration data",
    )  # fmt: skip
    group.add_argument("--bytes-per-token", type=int, metavar="N", help="the same, as bytes of all layers")


def _add_compression(group: argparse._ArgumentGroup) -> None:
    defaults = CompressOptions
    group.add_argument(
        "--rank-ratio", "--param_ratio_target", type=float, metavar="R",
        help=f"fraction of the KV rank to keep, in (0, 1] (default: {defaults.rank_ratio})",
    )  # fmt: skip
    group.add_argument(
        "--group-size", "--head_group_size", type=int, metavar="N",
        help="adjacent KV heads that share one decomposition (default: the largest divisor of their number up to 4)",
    )  # fmt: skip
    group.add_argument("--group-size-k", type=int, metavar="N", help="of K only")
    group.add_argument(
        "--group-size-v", type=int, metavar="N", help="of V only; one of both sizes must divide the other"
    )
    group.add_argument(
        "--objective", "--decompose_method", choices=OBJECTIVES, default=defaults.objective,
        help="what is kept best: the weights, the keys and values of the calibration data (the paper), or what its "
        "attention adds to the residual stream (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--search", "--search_method", choices=SEARCHES,
        help="how ranks are spread over layers, K and V; see below (default: energy with --objective weighted, else "
        "uniform)",
    )  # fmt: skip
    group.add_argument(
        "--k-cost", type=float, default=defaults.k_cost, metavar="C",
        help="with energy and sensitivity a rank of K, which attention rebuilds keys from, must save 1 + C times what "
        "a rank of V saves: faster decoding at the same bytes (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--refit", action=argparse.BooleanOptionalAction,
        help="fit the up-projections again by least squares (default: with --objective weighted)",
    )  # fmt: skip
    group.add_argument(
        "--reorder-heads", action="store_true", help="let similar KV heads share a group, instead of adjacent ones"
    )
    group.add_argument(
        "--share-layers", type=int, default=defaults.share_layers, metavar="N",
        help="layers that read the cache of an earlier one and hold none (KVSharer): of the most dissimilar pairs "
        "those that change the last hidden states least; needs the whole model in float32 in memory",
    )  # fmt: skip
    group.add_argument(
        "--share-threshold", type=float, metavar="C",
        help=f"cosine with the model's own that they must keep (default: {DEFAULT_SHARE_THRESHOLD})",
    )  # fmt: skip
    group.add_argument(
        "--share-map", type=_pairs, metavar="LAYER:SOURCE,...", help="which layers read which, like 7:2,9:4, unsearched"
    )
    group.add_argument(
        "--value-path", choices=VALUE_PATHS, default=defaults.value_path,
        help="v_up multiplied into o_proj, or kept apart, or whichever is smaller (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dtype", choices=DTYPES, default=defaults.dtype,
        help="dtype of the output; auto keeps the model's (default: %(default)s)",
    )  # fmt: skip


def _add_quantization(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--latent-bits", "--lt_bits", type=int, metavar="BITS", help="16, 8, 4, 3 or 2 (default: 16)")
    group.add_argument("--latent-bits-k", type=int, metavar="BITS", help="of K only")
    group.add_argument("--latent-bits-v", type=int, metavar="BITS", help="of V only")
    group.add_argument(
        "--tiers", type=_tiers, metavar="SHARE:BITS,...",
        help="leading numbers of every latent with more bits, like 0.25:8,0.75:4; a scale and a rotation per tier",
    )  # fmt: skip
    group.add_argument(
        "--hadamard", "--lt_hadamard", action=argparse.BooleanOptionalAction,
        help="rotate latents so that their numbers are about equally large (default: where they are quantized)",
    )  # fmt: skip
    group.add_argument(
        "--latent-group-size", "--lt_group_size", type=int, default=CompressOptions.latent_group_size, metavar="N",
        help="numbers of a tier that share a scale, a multiple of 16; 0: all (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--latent-symmetric", "--lt_sym", action="store_true", help="codes about zero: a scale and no minimum"
    )
    group.add_argument(
        "--latent-clip-ratio", "--lt_clip_ratio", type=float, metavar="C",
        help="share of the range that codes cover, in (0, 1] (default: searched on the calibration data, per layer)",
    )  # fmt: skip


def _tiers(written: str) -> tuple[tuple[float, int], ...]:
    """The pairs of ``0.25:8,0.75:4``."""
    pairs = [part.split(":") for part in written.split(",")]
    return tuple((float(share), int(bits)) for share, bits in pairs)


def _pairs(written: str) -> LayerPairs:
    """Those of ``7:2,9:4``."""
    pairs = [part.split(":") for part in written.split(",")]
    return tuple((int(layer), int(source)) for layer, source in pairs)


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    defaults = CompressOptions
    group.add_argument(
        "--calib-data", "--calib_dataset", metavar="FILE_OR_ID",
        help="text file, .jsonl or .parquet with a field text, or hub dataset id[:configuration[:split]]; never the "
        "text you evaluate on",
    )  # fmt: skip
    group.add_argument("--calib-samples", type=int, metavar="N", help="sets both sample counts below")
    group.add_argument(
        "--n_whiten_calib_samples", type=int, dest="whiten_samples", metavar="N",
        help=f"most samples for the whitening (default: {defaults.whiten_samples})",
    )  # fmt: skip
    group.add_argument(
        "--n_fisher_calib_samples", type=int, dest="fisher_samples", metavar="N",
        help=f"most samples for the Fisher information (default: {defaults.fisher_samples})",
    )  # fmt: skip
    group.add_argument(
        "--calib-seqlen", "--calib_seqlen", type=int, metavar="N",
        help="tokens per sample (default: 1024, or the model's context if shorter)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=defaults.seed, help="chooses the samples among the text (default: %(default)s)"
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--overwrite", action="store_true", help="replace OUT, once the new one is complete")
    group.add_argument("--dry-run", action="store_true", help="print ranks, bytes, memory and disk; write nothing")
    group.add_argument(
        "--resume", action="store_true",
        help="go on with the work of a run that was killed, and keep the work if this run ends early",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=int, metavar="N",
        help="groups of heads that are decomposed at a time, on a thread each; the bytes are the same for any number "
        "(default: as many as PyTorch has threads, so OMP_NUM_THREADS or the cores; 1 on a GPU)",
    )  # fmt: skip


def parse_options(argv: Sequence[str] | None) -> CompressOptions:
    """Raises SystemExit(2) for arguments that argparse refuses, CompressionError for values that make no sense."""
    made = parser()
    arguments = vars(made.parse_intermixed_args(argv))
    paths, model = arguments.pop("paths"), arguments.pop("model_id")
    if model is not None:
        paths = [model, *paths]
    if len(paths) != 2:
        made.error(f"got {len(paths)} paths ({', '.join(paths)}); expected MODEL OUT, or --model_id MODEL and OUT")
    if arguments["rank_ratio"] is None:
        arguments["rank_ratio"] = CompressOptions.rank_ratio
    elif arguments["target_compression"] is not None or arguments["bytes_per_token"] is not None:
        made.error("a budget chooses the ranks itself; give --rank-ratio or a budget")
    both = arguments.pop("calib_samples")
    for count in ("whiten_samples", "fisher_samples"):
        if arguments[count] is None:
            arguments[count] = getattr(CompressOptions, count) if both is None else both
    return CompressOptions(model=paths[0], out=Path(paths[1]), **arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    kept = "the work is kept for --resume." if "--resume" in arguments else "nothing was written."
    return run_command("palu-compress", partial(_compress, arguments), kept)


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
            f"{options.out}: {report['bytes_per_token']} bytes of KV cache per token instead of "
            f"{report['dense_bytes_per_token']} ({report['compression']:.2f}x), keys rebuilt with "
            f"{report['rebuild_work_per_token']} multiplications per cached token, {report['seconds']:.0f} s, "
            f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB. "
            f"Serve it: vllm serve {options.out} --attention-backend palu"
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
