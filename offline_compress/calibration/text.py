"""Documents of a file or a hub dataset, read as they are needed: texts, or chats for the model's own template."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from offline_compress.calibration.records import Placed, Record, read_records
from offline_compress.run.errors import CompressionError, reason

FIELDS = ("text", "content", "messages")
HUB_ID = r"[\w-][\w.-]*(/[\w.-]+)?(:[^/]+){0,2}"
# the names that the reference implementation gives to hub datasets
KNOWN_DATASETS = {"wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1", "c4": "allenai/c4:en"}


class Chat(NamedTuple):
    """A conversation, and the tools that it may call."""

    messages: list[Mapping[str, Any]]
    tools: list[Any] | None


Document = str | Chat


def read_documents(data: str, field: str | None = None) -> Iterator[Document]:
    """Yields what a file or a hub dataset ``id[:configuration[:split]]`` has in ``field``, else in one of ``FIELDS``.

    What is empty or white space is passed over. Raises: CompressionError for data that cannot be read.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        raise CompressionError(f"calibration data {data} is a directory; give a text, jsonl, csv or parquet file.")
    if path.exists():
        return _documents(read_records(path), field)
    if not re.fullmatch(HUB_ID, data):
        raise CompressionError(f"calibration data {data} is not a file, nor can it be the id of a hub dataset.")
    return _documents(_hub_records(data), field)


def _documents(records: Iterator[Placed], field: str | None) -> Iterator[Document]:
    for place, record in records:
        found = _document(record, field, place)
        if isinstance(found, Chat) or found.strip():
            yield found


def _document(record: Record, field: str | None, place: str) -> Document:
    if isinstance(record, str):
        return _checked(record, place)
    names = FIELDS if field is None else (field,)
    name = next((name for name in names if name in record), None)
    if name is None:
        raise CompressionError(
            f"{place} has no field {' or '.join(map(repr, names))}; it has {', '.join(map(str, record)) or 'none'}, "
            "name one with --calib-field."
        )
    value = record[name]
    if value is None:
        return ""
    if isinstance(value, str):
        return _checked(value, place)
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "role" in each for each in value):
        return Chat([{key: part for key, part in each.items() if part is not None} for each in value],
                    record.get("tools") or None)  # fmt: skip
    raise CompressionError(
        f"{place} has a {name!r} that is not a string but {type(value).__name__}; name another with --calib-field."
    )


def _checked(text: str, place: str) -> str:
    if "\0" in text:
        raise CompressionError(f"{place} has NUL bytes, so it is no text; give a UTF-8 text file.")
    if re.search("[\ud800-\udfff]", text):
        raise CompressionError(f"{place} has half of a character (a lone surrogate); correct the file.")
    return text


def _hub_records(data: str) -> Iterator[Placed]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise CompressionError(
            f"calibration data {data} is not a file, and hub datasets need the datasets library; "
            "give a local file or pip install datasets."
        ) from error
    name, configuration, split, *_ = (*KNOWN_DATASETS.get(data, data).split(":"), None, None)
    try:
        rows = load_dataset(name, configuration, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"row {number} of {data}", row
    except CompressionError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise CompressionError(
            f"calibration data {data} is not a file, and the hub gives no such dataset ({reason(error)}); "
            "give a local file."
        ) from error
