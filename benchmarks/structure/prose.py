"""How long the sentences of Markdown pages are; code, tables, headings and pictures are left out."""

import re
from pathlib import Path
from statistics import median

FENCED = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
LEFT_OUT = re.compile(r"^\s*(#|\||<|!\[|\[!).*$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
NEW_BLOCK = re.compile(r"\n\s*(?:\n|[-*+] |\d+\. )")
END = re.compile(r"(?<=[.!?])[)\"*_`]*\s+(?=[\"'(*_`\[]*[A-Z0-9`])")
LONG = 35  # words


def sentences(markdown: str) -> list[str]:
    """The sentences of a page; an item of a list is at least one."""
    prose = LINK.sub(r"\1", LEFT_OUT.sub("", FENCED.sub("", markdown)))
    parts = [part for block in NEW_BLOCK.split("\n" + prose) for part in END.split(" ".join(block.split()))]
    return [part for part in parts if re.search(r"[A-Za-z]", part)]


def summary(paths: list[Path]) -> str:
    """The median of words per sentence, and how many sentences are long."""
    words = [len(part.split()) for path in paths for part in sentences(path.read_text(encoding="utf-8"))]
    if not words:
        return "no sentence"
    long = sum(count > LONG for count in words) / len(words)
    return f"median {median(words):g} words, {long:.0%} above {LONG}, {len(words)} sentences"
