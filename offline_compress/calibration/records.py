"""Records of data files: lines, objects and rows, whatever the file is compressed with and whichever case its name has.

A record is a mapping of fields, or the text itself where a file has no fields. Each comes with the words for its place.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from offline_compress.run.errors import CompressionError, reason

PIECE_CHARACTERS = 1 << 16
LONGEST_CELL = 1 << 30
Record = str | Mapping[str, Any]
Placed = tuple[str, Record]  # where it stands, in words, and what it is


def read_records(path: Path) -> Iterator[Placed]:
    """Yields the records of a file or a pipe. Raises: CompressionError for what cannot be read."""
    try:
        with _opened(path) as file:
            yield from _reader(path, file)(path, file)
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise CompressionError(
            f"calibration data {path} cannot be read ({reason(error)}); give a UTF-8 text file."
        ) from error


def _opened(path: Path) -> IO[bytes]:
    packed = path.suffix.lower()
    if packed == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if packed != ".zst":
        return path.open("rb")
    try:
        import zstandard
    except ImportError as error:
        raise CompressionError(
            f"{path} needs zstandard, which is not installed; pip install zstandard or unpack it."
        ) from error
    return io.BufferedReader(_Zstandard(zstandard.open(path, "rb"), zstandard.ZstdError))


class _Zstandard(io.RawIOBase):
    """A stream whose damage is an OSError, like that of the other kinds."""

    def __init__(self, stream: Any, damage: type[Exception]):
        self._stream, self._damage = stream, damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            read = self._stream.read(len(buffer))
        except self._damage as error:
            raise OSError(str(error)) from error
        buffer[: len(read)] = read
        return len(read)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _reader(path: Path, file: IO[bytes]) -> Callable[[Path, IO[bytes]], Iterator[Placed]]:
    """The reader by the name, for a pipe by how its content begins."""
    name = path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path
    kind = name.suffix.lower()
    if not path.is_file() and isinstance(file, io.BufferedReader) and file.peek(1)[:1] == b"{":
        kind = ".jsonl"
    return READERS.get(kind, _text)


def _lines(file: IO[bytes]) -> io.TextIOWrapper:
    """Text without the mark that some programs put before it."""
    return io.TextIOWrapper(file, encoding="utf-8-sig")


def _text(path: Path, file: IO[bytes]) -> Iterator[Placed]:
    """Pieces of about 64 Ki characters, cut at line ends."""
    with _lines(file) as lines:
        while piece := lines.readlines(PIECE_CHARACTERS):
            yield str(path), "".join(piece)


def _jsonl(path: Path, file: IO[bytes]) -> Iterator[Placed]:
    with _lines(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number} of {path}", _object(line, f"line {number} of {path}")


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CompressionError(f"{place} is not a JSON object ({reason(error)}); correct the file.") from error
    if not isinstance(found, dict):
        raise CompressionError(f"{place} is not a JSON object; correct the file.")
    return found


def _json(path: Path, file: IO[bytes]) -> Iterator[Placed]:
    """A list of objects or of texts, one object, or JSON lines by another name."""
    content = file.read()
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (json.JSONDecodeError, RecursionError):
        yield from _jsonl(path, io.BytesIO(content))
        return
    for number, record in enumerate(found if isinstance(found, list) else [found], 1):
        place = f"entry {number} of {path}"
        if not isinstance(record, dict | str):
            raise CompressionError(f"{place} is neither an object nor a text; give a list of those.")
        yield place, record


def _csv(path: Path, file: IO[bytes], delimiter: str = ",") -> Iterator[Placed]:
    csv.field_size_limit(LONGEST_CELL)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        try:
            for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), 1):
                yield f"row {number} of {path}", row
        except csv.Error as error:
            raise CompressionError(f"{path} is not readable as CSV ({error}); correct the file.") from error


def _tsv(path: Path, file: IO[bytes]) -> Iterator[Placed]:
    return _csv(path, file, "\t")


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CompressionError(
            f"{path} needs pyarrow, which is not installed; pip install pyarrow or give jsonl."
        ) from error
    number = 0
    try:
        for batch in parquet.ParquetFile(io.BytesIO(file.read()) if not file.seekable() else file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number} of {path}", row
    except (ArrowException, OSError) as error:
        raise CompressionError(
            f"{path} is not a readable parquet file ({reason(error)}); give another file."
        ) from error


READERS = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
