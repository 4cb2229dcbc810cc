"""``palu-convert DIR OUT``: command line of the conversion of reference dumps."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from offline_compress.commands.command import cache_sentence, run_command, serve_command
from offline_compress.commands.generator import add_options, command_parser
from offline_compress.convert.options import ConvertOptions

NAME = "palu-convert"


def parser() -> ArgumentParser:
    """Returns the options of the command."""
    made = command_parser(
        NAME,
        "DIR OUT [options]",
        "Write a model that the reference implementation of Palu compressed (--dump_huggingface_model) as a\n"
        "checkpoint that vLLM serves with latents in its cache.",
        "Exit codes: 0 done, 2 a dump that cannot be converted, 130 interrupted. After an error nothing is left\n"
        "behind. Code and pickles in DIR are never read.",
    )
    add_options(made, ConvertOptions)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = vars(parser().parse_args(argv))
    return run_command(NAME, lambda: _convert(ConvertOptions(**given)), "nothing was written.")


def _convert(options: ConvertOptions) -> None:
    from offline_compress.convert.pipeline import convert
    from offline_compress.run.progress import shown_on

    with shown_on(sys.stderr) as on_event:
        report = convert(options, on_event)
    print(f"{options.out}: {cache_sentence(report)}. {report['note']} Serve it: {serve_command(options.out)}")


if __name__ == "__main__":
    raise SystemExit(main())
