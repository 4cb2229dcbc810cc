"""``palu-calibrate MODEL OUT``: command line, messages and exit codes."""

import json
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial

from offline_compress.codec.options import CalibrateOptions
from offline_compress.commands.command import run_command
from offline_compress.commands.generator import add_options, command_parser

NAME = "palu-calibrate"
EPILOG = """\
A codec is a directory with two files of a few MB. The model's weights stay as they are, so that quantized copies,
adapters and tokenizers go on working. See docs/guide/codec.md and docs/concepts/codec.md.

Exit codes: 0 done, 2 input that cannot be calibrated, 130 interrupted. After an error nothing is left behind, unless
--resume was given: then the moments are kept, which take most of the time.
"""


def parser() -> ArgumentParser:
    """Returns the options of the command."""
    made = command_parser(
        NAME, "MODEL OUT --calib-data FILE [options]", "Write a KV codec for a model as it is.", EPILOG
    )
    add_options(made, CalibrateOptions)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    kept = "the moments are kept for --resume." if "--resume" in arguments else "nothing was written."
    return run_command(NAME, partial(_calibrate, arguments), kept)


def _calibrate(arguments: Sequence[str]) -> None:
    """The calibration itself; torch and transformers are imported only here, so that ``--help`` is quick."""
    options = CalibrateOptions(**vars(parser().parse_args(arguments)))
    from offline_compress.codec.pipeline import run
    from offline_compress.run.progress import shown_on

    with shown_on(sys.stderr) as on_event:
        report = run(options, on_event)
    print(json.dumps(report, indent=2) if options.dry_run else _summary(options, report))


def _summary(options: CalibrateOptions, report: dict) -> str:
    setting = json.dumps({"palu": {"codec": str(options.out)}})
    return (
        f"{options.out}: {report['bytes_per_token']} bytes of KV cache per token instead of "
        f"{report['dense_bytes_per_token']} ({report['compression']:.2f}x), KL {report['kl']:.4f} on held-out samples "
        f"(predicted {report['predicted_kl']:.4f}), {report['seconds']:.0f} s. Serve it: "
        f"vllm serve {shlex.quote(options.model)} --attention-backend palu --additional-config {shlex.quote(setting)}"
    )


if __name__ == "__main__":
    sys.exit(main())
