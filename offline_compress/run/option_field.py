"""How a field of an options dataclass is asked for on a command line: its metadata, made here and read by commands."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any

from offline_compress.run.errors import CompressionError

KEY = "option"


@dataclass(frozen=True)
class Asked:
    """What a command line says of one field, beyond its own name, type and default.

    ``names`` mean the same as ``--name-of-the-field``. ``read`` makes the value from a word where the field's type
    cannot. ``positional`` fields are asked for by place, ``several`` words make a tuple.
    """

    help: str
    names: tuple[str, ...] = ()
    section: str | None = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    least: int | None = None
    read: Callable[[str], Any] | None = None
    positional: bool = False
    several: bool = False


def option(help: str, *names: str, default: Any = MISSING, **asked: Any) -> Any:
    """Returns a dataclass field that the command line asks for; ``asked`` are the other fields of :class:`Asked`."""
    return dataclasses.field(default=default, metadata={KEY: Asked(help, names, **asked)})


def options_of(cls: type) -> dict[str, tuple[dataclasses.Field, Asked]]:
    """Returns ``{name: (field, what is asked)}`` of the fields that were made by :func:`option`, in their order."""
    return {field.name: (field, field.metadata[KEY]) for field in dataclasses.fields(cls) if KEY in field.metadata}


def check_fields(options: Any) -> None:
    """Raises CompressionError for a value that is none of its field's choices, or less than its least."""
    for name, (_, asked) in options_of(type(options)).items():
        value, what = getattr(options, name), name.replace("_", " ")
        if value is None:
            continue
        if asked.choices is not None and value not in asked.choices:
            raise CompressionError(f"{what} {value!r} is unknown; expected one of {', '.join(asked.choices)}.")
        if asked.least is not None and value < asked.least:
            raise CompressionError(f"{what} is {value}; expected at least {asked.least}.")


def check_device(device: str) -> None:
    """Raises CompressionError for the name of no device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise CompressionError(f"device {device!r} is not supported; expected auto, cpu, cuda or cuda:N.")
