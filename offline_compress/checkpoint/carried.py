"""What a report says of the files that a model came with: which go along, and whether they tokenize alike."""

from pathlib import Path
from typing import Any

from offline_compress.checkpoint.companions import companions
from offline_compress.checkpoint.tokenizer import carry_tokenizer
from offline_compress.model.source import SourceModel


def carried(source: SourceModel, out: Path) -> dict[str, Any]:
    """Makes ``out`` tokenize as the model does; returns its entries of the report.

    Raises: CompressionError where the output would tokenize otherwise.
    """
    files = companions(source.directory)
    compared = carry_tokenizer(source.directory, source.config, out)
    return {"files_copied": files.copied, "files_left_behind": files.left_behind, "tokenizer": compared}
