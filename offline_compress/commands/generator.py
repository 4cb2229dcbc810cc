"""Command lines made from options dataclasses: a dataclass says once what it takes, and every command asks for that."""

import argparse
import dataclasses
import types
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args, get_type_hints

from offline_compress.run.option_field import Asked, options_of
from offline_compress.run.provenance import tool_version

READABLE = (int, float, str, Path)
Sections = dict[str, argparse._ArgumentGroup]


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names what an option takes once, behind the last of its names, as Python 3.13 does."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def command_parser(name: str, usage: str, description: str, epilog: str) -> ArgumentParser:
    """Returns a parser with ``--help`` and ``--version`` whose result holds what was given and nothing else."""
    made = ArgumentParser(
        prog=name,
        usage=f"{name} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=_Help,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {tool_version()}")
    return made


def add_options(parser: ArgumentParser, options: type) -> Sections:
    """Adds every option of a dataclass, in sections as its fields name them; returns the sections by title."""
    sections: Sections = {}
    hints = get_type_hints(options)
    for name, (field, asked) in options_of(options).items():
        if asked.positional:
            parser.add_argument(name, type=_reader(asked, hints[name]), metavar=asked.metavar, help=asked.help)
            continue
        if asked.section is not None and asked.section not in sections:
            sections[asked.section] = parser.add_argument_group(asked.section)
        _add_option(sections[asked.section] if asked.section else parser, field, asked, hints[name])
    return sections


def _add_option(group: argparse._ActionsContainer, field: dataclasses.Field, asked: Asked, hint: Any) -> None:
    names = (f"--{field.name.replace('_', '-')}", *asked.names)
    settings: dict[str, Any] = {"dest": field.name, "help": _help(field, asked), "default": argparse.SUPPRESS}
    if hint is bool:
        group.add_argument(*names, action="store_true", **settings)
        return
    if bool in get_args(hint):
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **settings)
        return
    if asked.several:
        settings |= {"nargs": "+", "action": "extend"}
    settings |= {"metavar": asked.metavar, "choices": asked.choices, "type": _reader(asked, hint)}
    group.add_argument(*names, required=field.default is dataclasses.MISSING, **settings)


def _help(field: dataclasses.Field, asked: Asked) -> str:
    """The help with the default behind it, where the field has one and the help does not say it."""
    silent = (None, False, dataclasses.MISSING)
    if any(field.default is value for value in silent) or "(default:" in asked.help:
        return asked.help
    shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{asked.help} (default: {shown})"


def _reader(asked: Asked, hint: Any) -> Any:
    """What makes the value from a word: the option's own, else the type of the field."""
    if asked.read is not None:
        return asked.read
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next(kind for kind in kinds if kind in READABLE)
