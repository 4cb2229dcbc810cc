"""The output's tokenizer gives tokens and chats as the dense model's does, or there is no output."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offline_compress.run.errors import CompressionError, reason
from palu_vllm.huggingface.tokenizer_agreement import compare_tokenizers, tokenizer_of

UNUSABLE = (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError)


def carry_tokenizer(source: Path, config: Mapping[str, Any], out: Path) -> str | None:
    """Makes ``out`` tokenize as the dense model in ``source`` does; returns what was compared, None for no tokenizer.

    Where transformers would choose otherwise for the compressed model type, the tokenizer itself is written into
    ``out``. Raises: CompressionError if the two still differ.
    """
    try:
        theirs = tokenizer_of(source, config)
    except UNUSABLE:
        return None
    try:
        return compare_tokenizers(tokenizer_of(out), theirs)
    except UNUSABLE:
        _write_out(theirs, out)
    try:
        return compare_tokenizers(tokenizer_of(out), theirs)
    except UNUSABLE as error:
        raise CompressionError(
            f"the output would not tokenize as the model does: {reason(error).rstrip('.')}; correct the tokenizer "
            f"files of {source}."
        ) from error


def _write_out(tokenizer: Any, out: Path) -> None:
    """Writes the tokenizer as it was put together, to be read by the class that changes nothing of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    (out / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    settings["tokenizer_class"] = "TokenizersBackend"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
