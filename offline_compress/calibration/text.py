"""Documents from a text, jsonl or parquet file or from a hub dataset, read as they are needed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from offline_compress.run.errors import CompressionError, reason

TEXT_FIELD = "text"
PIECE_CHARACTERS = 1 << 16
HUB_ID = r"[\w-][\w.-]*(/[\w.-]+)?(:[^/]+){0,2}"
# the names that the reference implementation gives to hub datasets
KNOWN_DATASETS = {"wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1", "c4": "allenai/c4:en"}


def read_documents(data: str) -> Iterator[str]:
    """The documents of a file (.jsonl and .parquet: field ``text``; others: UTF-8 text) or a hub dataset.

    A text file is cut at line ends into documents of about 64 Ki characters. A hub dataset is
    ``id[:configuration[:split]]``. Raises CompressionError for data that cannot be read.
    """
    path = Path(data).expanduser()
    if not path.exists():
        if not re.fullmatch(HUB_ID, data):
            raise CompressionError(f"calibration data {data} is not a file, nor can it be the id of a hub dataset.")
        return _hub_documents(data)
    if not path.is_file():
        raise CompressionError(f"calibration data {data} is a directory; give a text, jsonl or parquet file.")
    readers = {".jsonl": _jsonl_documents, ".parquet": _parquet_documents}
    return _readable(path, readers.get(path.suffix, _text_documents)(path))


def _readable(path: Path, documents: Iterator[str]) -> Iterator[str]:
    try:
        yield from documents
    except (OSError, UnicodeDecodeError) as error:
        raise CompressionError(f"calibration data {path} cannot be read ({error}); give a UTF-8 text file.") from error


def _text_documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        while lines := file.readlines(PIECE_CHARACTERS):
            yield "".join(lines)


def _jsonl_documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[TEXT_FIELD]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CompressionError(
                    f"line {number} of {path} is not a JSON object with the field {TEXT_FIELD!r}; correct the file."
                ) from error
            if not isinstance(text, str):
                raise CompressionError(
                    f"line {number} of {path} has a {TEXT_FIELD!r} that is not a string; correct the file."
                )
            yield text


def _parquet_documents(path: Path) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CompressionError(
            f"{path} needs pyarrow, which is not installed; pip install pyarrow or give jsonl."
        ) from error
    try:
        file = parquet.ParquetFile(path)
        if TEXT_FIELD not in file.schema_arrow.names:
            raise CompressionError(f"{path} has no column {TEXT_FIELD!r}; it has {', '.join(file.schema_arrow.names)}.")
        for batch in file.iter_batches(columns=[TEXT_FIELD]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except ArrowException as error:
        raise CompressionError(f"{path} is not a readable parquet file ({error}); give another file.") from error


def _hub_documents(data: str) -> Iterator[str]:
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
        for row in rows:
            if row.get(TEXT_FIELD):
                yield row[TEXT_FIELD]
    except (OSError, ValueError, RuntimeError) as error:
        raise CompressionError(
            f"calibration data {data} is not a file, and the hub gives no such dataset ({reason(error)}); "
            "give a local file."
        ) from error
