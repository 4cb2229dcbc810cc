"""Parses command lines by the parsers of the programs that they name, and runs none: ``python -m ... < commands.json``.

A command whose last word is ``--help`` is a mention: its options must stand in the help, and their values are not
looked at. Prints one JSON object: the complaint about each command that its parser refuses.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from unittest.mock import patch

PATIENCE = 60  # seconds of processor time, imports included, after which a program is taken to have begun its work
ENTRY_POINTS = {point.name: point for point in importlib.metadata.entry_points(group="console_scripts")}


class ParsedError(BaseException):
    """A command line was accepted. Not an Exception, because programs report those."""


@contextlib.contextmanager
def stopped_behind_the_parser(arguments: list[str]) -> Iterator[None]:
    """A program that parses ``arguments`` goes no further."""

    def stopping(parse: Callable) -> Callable:
        def parsed(parser, args=None, namespace=None):
            options = parse(parser, args, namespace)
            if list(sys.argv[1:] if args is None else args) == arguments:
                raise ParsedError
            return options

        return parsed

    own = argparse.ArgumentParser
    with (
        patch.object(own, "parse_args", stopping(own.parse_args)),
        patch.object(own, "parse_intermixed_args", stopping(own.parse_intermixed_args)),
        patch.object(os, "execve", side_effect=AssertionError("a program was started")),
    ):
        yield


def serve(arguments: list[str]) -> None:
    """The parser of ``vllm serve``."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    raise ParsedError


def load(arguments: list[str]) -> None:
    """The parser of locust with the options of ``benchmarks.load``, which starts locust to parse them."""
    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"  # it would patch modules that others have imported
    from locust.argument_parser import get_empty_argument_parser, setup_parser_arguments

    from benchmarks.load.options import add_arguments

    parser = get_empty_argument_parser()
    setup_parser_arguments(parser)
    add_arguments(parser)
    parser.parse_args(arguments)
    raise ParsedError


def reads_options(module: str) -> bool:
    """Whether a program's file parses options; one that does not might begin its work. Raises where there is none."""
    found = importlib.util.find_spec(module)
    if found is not None and found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"there is no program {module}")
    return re.search("argparse|parser|parse_args", Path(found.origin).read_text(encoding="utf-8")) is not None


def run(words: list[str]) -> None:
    """Starts the program that ``words`` name."""
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    program, *arguments = words
    if program in ("python", "python3"):
        program, *arguments = arguments[1:]
        if arguments in ([], ["--help"]) and not reads_options(program):
            raise SystemExit(0)
        if program == "benchmarks.load" and "--help" not in arguments:
            load(arguments)
        sys.argv = [program, *arguments]
        with stopped_behind_the_parser(arguments):
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif program == "vllm":
        serve(arguments[1:])
    else:
        sys.argv = words
        with stopped_behind_the_parser(arguments):
            ENTRY_POINTS[program].load()()
    raise LookupError("it parses no options")


def is_mention(words: list[str]) -> bool:
    return words[-1] == "--help"


def asked(words: list[str]) -> list[str]:
    """What is run: a mention asks for the help, without its other options."""
    return [*takewhile(lambda word: not word.startswith("--"), words), "--help"] if is_mention(words) else words


def verdict(words: list[str], code: object, said: str) -> str | None:
    """What a program that ended has against a command: its complaint, or the options that its help does not have."""
    if code:
        return said[-400:] or repr(code)
    options = [word.partition("=")[0] for word in words[:-1] if word.startswith("--")]
    unknown = [option for option in options if option not in said]
    return f"its help has no {unknown}" if unknown and is_mention(words) else None


def complaint(words: list[str]) -> str | None:
    """What the parser says against a command, None if it takes it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            run(asked(words))
    except ParsedError:
        return None
    except SystemExit as ended:
        return verdict(words, ended.code, said.getvalue())
    except (Exception, AssertionError) as error:  # noqa: BLE001 whatever it is, it stands in the report
        return repr(error)
    return "it ended by itself"


def give_up(*_: object) -> None:
    raise TimeoutError("it begins its work without parsing options")


def main() -> None:
    signal.signal(signal.SIGPROF, give_up)
    commands = json.load(sys.stdin)
    answers = {" ".join(words): complaint(words) for words in commands}
    print(json.dumps({command: answer for command, answer in answers.items() if answer is not None}))


if __name__ == "__main__":
    main()
