"""Links into the documentation from outside of it: README, changelog, comments of the code."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\bdocs/[\w/.-]+\.(?:md|png)(?:#[\w-]+)?")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def test_pages_and_headings_that_files_name_exist():
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    places = [ROOT / name for name in names if name.endswith((".md", ".py", ".yaml", ".toml"))]
    found = [(path, link) for path in places if path.exists() for link in _links(path)]
    assert found
    assert [f"{path}: {link}" for path, link in found if not _exists(link)] == []


def _links(path):
    return LINK.findall(path.read_text())


def _exists(link):
    place, _, anchor = link.partition("#")
    page = ROOT / place
    return page.exists() and (not anchor or anchor in _anchors(page.read_text()))


def _anchors(page):
    """Return the anchors of headings, as GitHub and MyST make them."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(page))
    return {title.replace(" ", "-") for title in titles}
