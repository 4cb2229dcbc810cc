"""``palu-finetune OUT --data FILE``: command line of the fine-tuning."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from offline_compress.commands.command import run_command
from offline_compress.run.versions import add_version

NAME = "palu-finetune"


def parser() -> argparse.ArgumentParser:
    """The options of the command. Defaults are those of ``FinetuneOptions``, which needs torch."""
    made = argparse.ArgumentParser(
        prog=NAME,
        usage=f"{NAME} OUT --data FILE [options]",
        description="Train a compressed checkpoint with LoRA (rank 32, alpha 32, learning rate 2e-4 on a cosine) and "
        "merge the result into it. In float32, with the whole model in memory.",
        epilog="Exit codes: 0 done, 2 what cannot be trained, 130 interrupted. Until the end, and after an error, OUT "
        "is as it was.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    made.add_argument("checkpoint", type=Path, metavar="OUT", help="a directory that palu-compress wrote")
    made.add_argument(
        "--data", required=True, metavar="FILE_OR_ID",
        help="text file, .jsonl or .parquet with a field text, or hub dataset id; never the text you evaluate on",
    )  # fmt: skip
    made.add_argument("--out", type=Path, metavar="DIR", help="a new directory (default: OUT is replaced)")
    made.add_argument("--steps", type=int, metavar="N", help="default: one pass over the samples")
    made.add_argument("--samples", type=int, metavar="N", help="most samples of the data (default: 8000)")
    made.add_argument("--seqlen", type=int, metavar="N", help="tokens per sample (default: 1024, or the context)")
    made.add_argument("--batch-size", type=int, metavar="N", help="samples per step (default: 8)")
    made.add_argument("--rank", type=int, metavar="R", help="of the adapters (default: 32)")
    made.add_argument("--alpha", type=float, help="adapters are scaled by alpha / rank (default: 32)")
    made.add_argument("--lr", type=float, dest="learning_rate", help="at the start (default: 2e-4)")
    made.add_argument("--seed", type=int, help="of samples, their order and the adapters (default: 42)")
    made.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_version(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(NAME, partial(_finetune, parser().parse_args(argv)), "the checkpoint is as it was.")


def _finetune(arguments: argparse.Namespace) -> None:
    from offline_compress.finetune.pipeline import FinetuneOptions, finetune
    from offline_compress.run.progress import shown_on

    options = FinetuneOptions(**vars(arguments))
    with shown_on(sys.stderr) as on_event:
        record = finetune(options, on_event)
    print(
        f"{options.out or options.checkpoint}: {record['steps']} steps, loss {record['first_loss']} to "
        f"{record['last_loss']}, {record['seconds']:.0f} s."
    )


if __name__ == "__main__":
    raise SystemExit(main())
