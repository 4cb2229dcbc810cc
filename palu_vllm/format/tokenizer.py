"""How many token ids a ``tokenizer.json`` gives, without loading a tokenizer, and whether the model knows them all."""

import json
from pathlib import Path


def token_ids(directory: Path) -> int:
    """One more than the highest token id; 0 where there is no ``tokenizer.json`` that can be read."""
    try:
        read = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = read["model"].get("vocab", {})
        highest = max(vocabulary.values(), default=-1) if isinstance(vocabulary, dict) else len(vocabulary) - 1
        return 1 + max([highest, *(token["id"] for token in read.get("added_tokens", []))])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def unknown_tokens(directory: Path, rows: int) -> tuple[str, ...]:
    """One sentence where the tokenizer has more tokens than the model has rows of embeddings, else none."""
    ids = token_ids(directory)
    if ids <= rows:
        return ()
    return (
        f"the tokenizer has {ids} tokens and the model only {rows} rows of embeddings; "
        f"a prompt with a token from {rows} on cannot be answered.",
    )
