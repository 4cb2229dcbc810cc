"""What the arms are judged on: rows of text by kind, and the dense model's own answers to prompts."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.perplexity import rows_of, spread_rows

KINDS = ("wiki", "news", "code", "bulgarian")


@dataclass(frozen=True)
class Rows:
    """Token ids ``[rows, context]``, each row beginning as the tokenizer begins a text, and the kind of each row."""

    ids: torch.Tensor
    kinds: tuple[str, ...]


def rows_of_kinds(tokenizer: PreTrainedTokenizerBase, folder: Path, kinds: tuple[str, ...], per_kind: int,
                  context: int) -> Rows:  # fmt: skip
    """``per_kind`` rows of each text, spread evenly over it. Raises ValueError where a text has fewer."""
    found: list[list[int]] = []
    for kind in kinds:
        path = folder / f"{kind}_evaluation.txt"
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
        rows = spread_rows(rows_of(ids, context, tokenizer.encode("")), per_kind)
        if len(rows) < per_kind or len(rows[0]) < context:
            raise ValueError(f"{path.name} has {len(ids)} tokens, too few for {per_kind} rows of {context}.")
        found += rows
    return Rows(torch.tensor(found), tuple(kind for kind in kinds for _ in range(per_kind)))


@torch.inference_mode()
def dense_answers(model: torch.nn.Module, asked: list[list[int]], tokens: int, cached: Path) -> list[list[int]]:
    """Greedy answers of the dense model, kept in the file ``cached`` for prompts that are the same."""
    known = json.loads(cached.read_text()) if cached.exists() else {}
    if known.get("asked") == asked and known.get("tokens") == tokens:
        return known["answers"]
    options = {"max_new_tokens": tokens, "do_sample": False, "repetition_penalty": 1.0}
    answers = [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in asked]
    cached.write_text(json.dumps({"asked": asked, "tokens": tokens, "answers": answers}), encoding="utf-8")
    return answers


def digest(ids: torch.Tensor) -> str:
    """Says whether two results are of the same tokens."""
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model)
