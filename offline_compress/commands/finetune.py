"""``palu-finetune OUT --data FILE``: command line of the fine-tuning."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from offline_compress.commands.command import run_command
from offline_compress.commands.generator import add_options, command_parser
from offline_compress.finetune.options import FinetuneOptions

NAME = "palu-finetune"


def parser() -> ArgumentParser:
    """Returns the options of the command."""
    made = command_parser(
        NAME,
        "OUT --data FILE [options]",
        "Train a compressed checkpoint with LoRA (rank 32, alpha 32, learning rate 2e-4 on a cosine) and merge the\n"
        "result into it. In float32, with the whole model in memory.",
        "Exit codes: 0 done, 2 what cannot be trained, 130 interrupted. Until the end, and after an error, OUT is as\n"
        "it was.",
    )
    add_options(made, FinetuneOptions)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = vars(parser().parse_args(argv))
    return run_command(NAME, lambda: _finetune(FinetuneOptions(**given)), "the checkpoint is as it was.")


def _finetune(options: FinetuneOptions) -> None:
    from offline_compress.finetune.pipeline import finetune
    from offline_compress.run.progress import shown_on

    with shown_on(sys.stderr) as on_event:
        record = finetune(options, on_event)
    print(
        f"{options.out or options.checkpoint}: {record['steps']} steps, loss {record['first_loss']} to "
        f"{record['last_loss']}, {record['seconds']:.0f} s."
    )


if __name__ == "__main__":
    raise SystemExit(main())
