"""Public-domain English text, split into training, calibration and evaluation documents.

Sources, both public domain and both Debian packages:
- the King James Bible (package ``bible-kjv``), one document per chapter;
- the Jargon File 4.4.7 (package ``jargon-text``), one document per entry.

A document belongs to exactly one split, chosen by a hash of its text, so the splits never overlap.
"""

import gzip
import hashlib
import re
import subprocess
from pathlib import Path

JARGON = Path("/usr/share/doc/jargon-text/jargon.txt.gz")
VERSE = re.compile(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.*)$")
SPLITS = ("train", "calibration", "evaluation")


def bible_chapters() -> list[str]:
    """The 1,189 chapters, verses joined by spaces."""
    printed = subprocess.run(
        ["bible", "-f"], input="gen1:1-rev22:21\n", capture_output=True, text=True, check=True
    ).stdout
    chapters: dict[tuple[str, str], list[str]] = {}
    for line in printed.splitlines():
        match = VERSE.match(line)
        if match:
            book, chapter, _, verse = match.groups()
            chapters.setdefault((book, chapter), []).append(verse.strip())
    return [" ".join(verses) for verses in chapters.values()]


def jargon_entries() -> list[str]:
    """The paragraphs of prose, tables and menus left out, wrapped lines joined, grouped by five."""
    text = gzip.decompress(JARGON.read_bytes()).decode("utf-8")
    paragraphs = []
    for raw in re.split(r"\n\s*\n", text):
        paragraph = " ".join(line.strip() for line in raw.splitlines())
        if len(paragraph) > 120 and not re.search(r"[─│┌└├]|_{3}|-{4}", paragraph):
            paragraphs.append(paragraph.translate(str.maketrans("‘’“”", "''\"\"")))
    return ["\n".join(paragraphs[i : i + 5]) for i in range(0, len(paragraphs), 5)]


def split_of(document: str) -> str:
    """4 % calibration, 4 % evaluation, the rest training."""
    bucket = int(hashlib.sha256(document.encode()).hexdigest(), 16) % 100
    return "evaluation" if bucket < 4 else "calibration" if bucket < 8 else "train"


def load_splits() -> dict[str, list[str]]:
    """``{split: documents}`` from the two installed Debian packages."""
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in bible_chapters() + jargon_entries():
        splits[split_of(document)].append(document)
    return splits
