"""Every relative link of the documentation leads to a file, and to a heading where it names one."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.md"], text=True, cwd=ROOT)
PAGES = [name for name in TRACKED.split() if (ROOT / name).is_file()]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def prose(page: Path) -> str:
    """A page without its fenced blocks, in which brackets mean something else."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: lower case, no punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name} links to {path}, which is not there"
        assert not anchor or anchor in anchors(target), f"{path or name} has no heading #{anchor}"


def test_every_page_of_the_documentation_is_reached_from_its_index():
    reached, waiting = set(), [ROOT / "docs/README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = {(page.parent / path).resolve() for path, _ in LINK.findall(prose(page)) if path.endswith(".md")}
        waiting += [link for link in links if link not in reached and link.is_relative_to(ROOT / "docs")]
    assert {ROOT / name for name in PAGES if name.startswith("docs/")} <= reached
