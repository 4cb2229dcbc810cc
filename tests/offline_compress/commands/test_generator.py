"""A command line made from a dataclass: names, types and defaults."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import pytest

from offline_compress.commands.generator import add_options, command_parser
from offline_compress.run.errors import CompressionError
from offline_compress.run.option_field import check_device, check_fields, option


def colon_pair(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(":")))


@dataclass(frozen=True)
class Sample:
    place: Path = option("a directory", positional=True, metavar="DIR")
    _: KW_ONLY
    how_many: int = option("of them", "-n", "--count", default=3, least=1, section="numbers")
    rate: float | None = option("in all (default: none)", default=None, section="numbers")
    kind: str = option("of two", default="round", choices=("round", "square"))
    loud: bool = option("or not", default=False)
    fast: bool | None = option("or slow", default=None)
    pair: tuple[int, ...] | None = option("of numbers", default=None, read=colon_pair)
    inner: int = 5  # asked for by nobody


def parser():
    made = command_parser("tool", "DIR [options]", "Does it.", "Exit codes: 0.")
    add_options(made, Sample)
    return made


def parse(line: str) -> Sample:
    return Sample(**vars(parser().parse_args(line.split())))


def test_nothing_given_is_the_defaults_of_the_dataclass():
    assert vars(parser().parse_args(["D"])) == {"place": Path("D")}
    assert parse("D") == Sample(Path("D"))


def test_every_kind_of_field():
    found = parse("D --how-many 7 --rate 0.5 --kind square --loud --no-fast --pair 1:2")
    assert found == Sample(Path("D"), how_many=7, rate=0.5, kind="square", loud=True, fast=False, pair=(1, 2))
    assert type(found.rate) is float and type(found.how_many) is int


def test_all_names_mean_the_same():
    assert parse("D -n 7") == parse("D --count 7") == parse("D --how-many=7") == Sample(Path("D"), how_many=7)


@pytest.mark.parametrize("line", ["", "D --kind oval", "D --how-many x", "D --how 3", "D --inner 3"])
def test_what_argparse_refuses(line, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(line)
    assert ended.value.code == 2 and "tool: error:" in capsys.readouterr().err


def test_help_says_defaults_sections_and_values_once(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = parser().format_help()
    assert "--how-many, -n, --count HOW_MANY" in text and "of them (default: 3)" in text
    assert "in all (default: none)" in text and "or not (default" not in text
    assert text.index("--kind {round,square}") < text.index("numbers:") < text.index("--rate")


def test_values_are_checked_wherever_they_come_from():
    with pytest.raises(CompressionError, match="^kind 'oval' is unknown; expected one of round, square.$"):
        check_fields(Sample(Path("D"), kind="oval"))
    with pytest.raises(CompressionError, match="^how many is 0; expected at least 1.$"):
        check_fields(Sample(Path("D"), how_many=0))
    check_fields(Sample(Path("D"), how_many=1))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
def test_devices_there_may_be(device):
    check_device(device)


@pytest.mark.parametrize("device", ["tpu", "cuda:", "CPU", ""])
def test_devices_there_are_not(device):
    with pytest.raises(CompressionError, match=f"^device '{device}' is not supported; expected auto, cpu, cuda"):
        check_device(device)
