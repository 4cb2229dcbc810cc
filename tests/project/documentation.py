"""The fenced blocks of the documentation, and the commands in them and in its text.

The info string of a block is its language and how it is tested: nothing runs it, ``slow`` runs it in ``make
test-all``, ``not-run: REASON`` leaves it unrun. ``docs/contributing/README.md`` says the same to writers.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.md"], text=True, cwd=ROOT)
PAGES = [name for name in TRACKED.split() if (ROOT / name).is_file()]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OURS = re.compile(r"(?:python3? -m|palu-(?:compress|convert|finetune|doctor)\b|vllm serve\b|make) ?[\w.-]*")


class Block(NamedTuple):
    page: str
    number: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def how(self) -> str:
        """How it is tested: nothing, ``slow``, or ``not-run: REASON``."""
        return self.info.partition(" ")[2]

    @property
    def name(self) -> str:
        return f"{self.page}#{self.number}"


def blocks() -> list[Block]:
    """All fenced blocks of all pages, in order."""
    pages = {name: FENCE.findall((ROOT / name).read_text(encoding="utf-8")) for name in PAGES}
    return [
        Block(page, number, *found) for page, all_found in pages.items() for number, found in enumerate(all_found, 1)
    ]


def lines_of(block: Block) -> list[str]:
    """The commands of a block of shell, without comments; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()) if line]


def commands_of(line: str) -> list[str]:
    """The words of a command of ours in a line of shell, none where there is none."""
    words = [word for word in shlex.split(line) if word != "$@"]
    while words and re.match(r"\w+=", words[0]):
        del words[0]
    return words if OURS.match(" ".join(words)) else []


def fenced_commands() -> list[list[str]]:
    """The words of every command of ours in a fenced block, each once."""
    lines = [line for block in blocks() if block.language == "bash" for line in lines_of(block)]
    return [list(words) for words in dict.fromkeys(tuple(commands_of(line)) for line in lines) if words]


def mentioned_commands() -> list[list[str]]:
    """The words of every command of ours that stands in a page's text between backticks, each once."""
    pages = [FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")) for page in PAGES]
    spans = dict.fromkeys(span for prose in pages for span in re.findall(r"`([^`]+)`", prose))
    return [shlex.split(re.sub(r"[][]| > .*", "", span)) for span in spans if OURS.match(span)]
