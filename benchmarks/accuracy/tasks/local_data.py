"""Texts and rows from local files or, by id, from the hub."""

import hashlib
import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from offline_compress.calibration.text import Chat, read_documents

# held-out splits; offline_compress has the training splits under the same names
EVALUATION_SETS = {"wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1:test", "c4": "allenai/c4:en:validation"}

FILE_ENDINGS = (".txt", ".md", ".json", ".jsonl", ".parquet")


def is_file(data: str) -> bool:
    """Whether ``data`` is a file, not the id of a hub dataset. Raises ValueError for a file that does not exist."""
    path = Path(data)
    if path.is_file():
        return True
    if path.suffix in FILE_ENDINGS or path.is_absolute() or data.startswith("."):
        raise ValueError(f"{data} does not exist; give a file or the id of a hub dataset.")
    return False


def read_text(data: str, characters: int | None = None) -> str:
    """A text file as it is; the documents of a jsonl or parquet file or a hub dataset joined by empty lines.

    Stops after ``characters``. Raises ValueError or CompressionError for data that cannot be read.
    """
    joint = "" if is_file(data) and Path(data).suffix not in (".jsonl", ".parquet") else "\n\n"
    size = 0

    def is_wanted(document: str) -> bool:
        nonlocal size
        size += len(document)
        return characters is None or size - len(document) < characters

    return joint.join(takewhile(is_wanted, _texts(data)))


def _texts(data: str) -> Iterator[str]:
    for document in read_documents(EVALUATION_SETS.get(data, data)):
        if isinstance(document, Chat):
            raise ValueError(f"{data} has chats, and what is scored is plain text; give a field named text or content.")
        yield document


def read_rows(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Objects of a jsonl file that all have ``fields``. Raises ValueError, naming the line, if they have not."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a jsonl file with the fields {', '.join(fields)}.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error.msg}).") from error
        if missing := [name for name in fields if name not in rows[-1]]:
            raise ValueError(f"line {number} of {path} lacks {', '.join(missing)}; expected {', '.join(fields)}.")
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def identity(data: str) -> dict[str, str]:
    """What decides the content: of a file its name and hash, of a hub dataset its id.

    Raises ValueError for a file that does not exist.
    """
    if not is_file(data):
        return {"data": data}
    path = Path(data)
    return {"data": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
