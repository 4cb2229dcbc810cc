"""What every command of the judge is asked: which model, and which rows of text; and the facts of its result."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common.output import command_line
from benchmarks.judge.texts import KINDS, Rows, digest, load_tokenizer, rows_of_kinds


def options_of(module: str, about: str) -> argparse.ArgumentParser:
    parser = command_line(module, about, "judge_smollm2.json")
    add = parser.add_argument
    add("--folder", type=Path, default=Path("models"), help="what benchmarks.real_models wrote (default: models)")
    add("--model", type=Path, help="a transformers directory (default: smollm2 in the folder)")
    add("--kinds", nargs="+", default=list(KINDS), help="of text, KIND_evaluation.txt in the folder")
    add("--rows", type=int, default=1, help="rows of each kind of text")
    add("--context", type=int, default=768, help="tokens of a row")
    return parser


def rows_asked(options: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """The rows of text, and what says that two results are of the same."""
    tokenizer = load_tokenizer(options.model)
    texts = rows_of_kinds(tokenizer, options.folder, tuple(options.kinds), options.rows, options.context)
    return texts, {
        "model": options.model.name,
        "kinds": options.kinds,
        "rows_of_each": options.rows,
        "context": options.context,
        "rows_sha256": digest(texts.ids),
    }
