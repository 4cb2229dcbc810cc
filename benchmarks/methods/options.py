"""The command line of ``python -m benchmarks.methods``."""

import argparse
from pathlib import Path

from benchmarks.accuracy.options import names as task_names
from benchmarks.accuracy.options import numbers
from benchmarks.accuracy.tasks.ruler import KINDS
from benchmarks.accuracy.tasks.ruler_styles import RULER_STYLES
from benchmarks.common.shipped import CALIBRATION, HELD_OUT, MODEL
from benchmarks.methods.families import FAMILIES
from benchmarks.methods.harness.interface import Method
from benchmarks.methods.registry import parse_method

PALU = "palu"  # NAME=DIR: not a method on the dense model but a checkpoint


def arm(text: str) -> Method | Path:
    """A method, or the directory of a palu checkpoint. Raises argparse.ArgumentTypeError."""
    if text.startswith(f"{PALU}="):
        return Path(text.partition("=")[2])
    try:
        return parse_method(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(text: str) -> list[str]:
    """``all``, or some of the methods that ``compare`` searches. Raises argparse.ArgumentTypeError."""
    known = [*FAMILIES, PALU]
    wanted = known if text == "all" else text.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; there are all, {', '.join(known)}")
    return wanted


class Budgets(argparse.Action):
    """``4,6`` or ``4 6``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            setattr(namespace, self.dest, tuple(float(part) for value in values for part in value.split(",")))
        except ValueError:
            parser.error(f"{option_string}: {' '.join(values)} are no numbers like 4,6")


def shared_options() -> argparse.ArgumentParser:
    """Those of all commands that measure."""
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--model", type=Path, default=MODEL)
    add("--text", type=Path, default=HELD_OUT, help="to score on, and the haystack")
    add("--calib-data", type=Path, default=CALIBRATION, help="for methods that learn, and to choose knobs")
    add("--calib-samples", type=int, default=8)
    add("--prompt-tokens", type=int, default=768)
    add("--new-tokens", type=int, default=128, help="tokens decoded after the prompt")
    add("--rows", type=int, default=4, help="rows of text, spread evenly over it")
    return shared


def question_options() -> argparse.ArgumentParser:
    """Those of commands that ask about prompts and add to a file of rows."""
    asked = argparse.ArgumentParser(add_help=False)
    add = asked.add_argument
    add("--budgets", action=Budgets, nargs="+", default=(4.0, 6.0), help="times fewer bytes, at the prompt's end")
    add("--needles", type=int, default=20, help="questions of each of recall, needle and RULER; 0 for none")
    add("--needle-style", default="demo", help="usual, demo, or a JSON file")
    add("--ruler-task", choices=KINDS, default="niah_multikey_1")
    add("--ruler-style", choices=RULER_STYLES, default="demo")
    add("--lm-eval", type=task_names, default=(), metavar="TASK,...", help="tasks of lm-eval, a column each")
    add("--lm-eval-include", type=Path, metavar="DIR", help="task files of your own, on local data")
    add("--lm-eval-limit", type=int, help="documents of each task")
    add("--seed", type=int, default=0, help="chooses haystacks, keys and values")
    add("--tune-rows", type=int, default=1, help="rows of calibration text to choose knobs on")
    add("--out", type=Path, metavar="STEM", help="writes STEM.json, whose rows are kept and added to, and the reports")
    add("--rerun", action="store_true", help="measure again what STEM.json has")
    return asked


def parser() -> argparse.ArgumentParser:
    shared, asked = shared_options(), question_options()
    top = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="methods and their knobs")
    one = commands.add_parser("measure", parents=[shared], help="perplexity, divergence and bytes on held-out text")
    one.add_argument("--method", type=arm, action="append", default=[], help="NAME:KNOB=VALUE,... or palu=DIR")
    one.add_argument("--out", type=Path, help="JSON file")
    many = commands.add_parser("compare", parents=[shared, asked], help="every method at the same bytes")
    many.add_argument("--methods", type=names, default="all", help="all, or names with commas")
    many.add_argument("--needle-map", type=float, metavar="BUDGET", help="depths and lengths at this one of --budgets")
    many.add_argument("--map-lengths", type=numbers, default=(512, 1024, 1536), help="tokens of context")
    many.add_argument("--map-samples", type=int, default=1, help="needles at each depth and length")
    commands.add_parser("tokens-or-bits", parents=[shared, asked], help="few tokens or few bits, at the same bytes")
    return top
