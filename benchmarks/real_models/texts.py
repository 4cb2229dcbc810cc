"""Texts to calibrate on and to be judged on, one file each. The two share no article and, but for one, no kind."""

import html
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

from benchmarks.real_models.sources import BULGARIAN, ENGLISH, NEWS, unpacked

SHORTEST_ARTICLE = 3000  # characters
MODULES = ("argparse", "ast", "asyncio/base_events", "calendar", "csv", "datetime", "difflib", "email/message", "heapq",
           "http/client", "inspect", "json/decoder", "logging/__init__", "pathlib", "shutil", "statistics", "tarfile",
           "textwrap", "typing", "zipfile")  # fmt: skip
BLOCKS = (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*?\|\}")  # templates and tables, innermost first
TAGS = (r"<!--.*?-->", r"<ref[^>/]*/>", r"<ref.*?</ref>", r"<[^>]+>")
PICTURES = (
    r"\[\[(?:File|Image|Category|Файл|Картинка|Категория|[a-z\-]{2,12}):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]"
)
ENDINGS = r"^==+ *(References|See also|Notes|External links|Further reading|Външни препратки|Източници)"


def plain(wiki: str) -> str:
    """The prose of an article's wiki markup, up to its references."""
    text = html.unescape(wiki)
    for _ in range(6):
        for block in BLOCKS:
            text = re.sub(block, "", text, flags=re.S)
    for tag in TAGS:
        text = re.sub(tag, "", text, flags=re.S)
    text = re.sub(PICTURES, "", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?:\S+ ?([^\]]*)\]", r"\1", text).replace("'''", "").replace("''", "")
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"^[*#:;|!{].*$", "", text, flags=re.M))
    end = re.search(ENDINGS, text, flags=re.M)
    return (text[: end.start()] if end else text).strip()


def articles(dump: str, shortest: int = SHORTEST_ARTICLE) -> list[str]:
    """Title and prose of the articles of a dump, in its order; redirects and short ones are left out."""
    pages = re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", dump, re.S)
    kept = [(title, body) for title, body in pages if not body.lstrip().lower().startswith("#redirect")]
    return [text for title, body in kept if len(text := f"{title}\n\n{plain(body)}") > shortest]


def standard_library() -> str:
    """Source of some modules of this Python."""
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)


def texts(cache: Path) -> dict[str, Callable[[], str]]:
    """File names, and how each is made."""

    def halves(number: int) -> str:
        found = articles(unpacked(ENGLISH.read(cache)))
        middle = len(found) // 2
        return "\n\n".join((found[:middle], found[middle:])[number])

    def bulgarian() -> str:
        dump = unpacked(BULGARIAN.read(cache), "utf-16")
        return "\n\n".join(articles(dump, shortest=500))

    return {
        "wiki_calibration.txt": lambda: halves(0),
        "wiki_evaluation.txt": lambda: halves(1),
        "news_evaluation.txt": lambda: NEWS.read(cache).decode("utf-8", "replace").replace("\n", "\n\n"),
        "code_evaluation.txt": standard_library,
        "bulgarian_evaluation.txt": bulgarian,
    }
