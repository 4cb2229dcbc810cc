"""``palu-convert DIR OUT``: command line of the conversion of reference dumps."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from offline_compress.commands.command import run_command
from offline_compress.options import DTYPES, VALUE_PATHS
from offline_compress.run.versions import add_version

NAME = "palu-convert"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog=NAME,
        usage=f"{NAME} DIR OUT [options]",
        description="Write a model that the reference implementation of Palu compressed (--dump_huggingface_model) as "
        "a checkpoint that vLLM serves with latents in its cache.",
        epilog="Exit codes: 0 done, 2 a dump that cannot be converted, 130 interrupted. After an error nothing is left "
        "behind. Code and pickles in DIR are never read.",
        allow_abbrev=False,
    )
    made.add_argument("dump", type=Path, metavar="DIR", help="the dumped directory")
    made.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    made.add_argument(
        "--value-path", choices=[path for path in VALUE_PATHS if path != "auto"], default="fused",
        help="v_up multiplied into o_proj, as the reference does when it loads, or kept apart (default: %(default)s)",
    )  # fmt: skip
    made.add_argument("--dtype", choices=DTYPES, default="auto", help="of the output; auto keeps the dump's")
    made.add_argument("--overwrite", action="store_true", help="replace OUT, once the new one is complete")
    add_version(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(NAME, partial(_convert, parser().parse_args(argv)), "nothing was written.")


def _convert(arguments: argparse.Namespace) -> None:
    from offline_compress.convert.pipeline import ConvertOptions, convert
    from offline_compress.run.progress import shown_on

    arguments.dtype = None if arguments.dtype == "auto" else arguments.dtype
    options = ConvertOptions(**vars(arguments))
    with shown_on(sys.stderr) as on_event:
        report = convert(options, on_event)
    print(
        f"{options.out}: {report['bytes_per_token']} bytes of KV cache per token instead of "
        f"{report['dense_bytes_per_token']} ({report['compression']:.2f}x). {report['note']} "
        f"Serve it: vllm serve {options.out} --attention-backend palu"
    )


if __name__ == "__main__":
    raise SystemExit(main())
