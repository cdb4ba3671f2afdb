"""What a release says of itself in several places."""

import re
import tomllib
from pathlib import Path

import yaml

import cosmoflow

ROOT = Path(__file__).parents[2]


def test_version_citation_and_changelog_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == cosmoflow.__version__
    assert "preferred-citation" not in citation  # it would take the place of the software
    (paper,) = citation["references"]
    assert paper["doi"] == "10.3847/1538-4357/abf3bb"
    assert (paper["authors"][0]["family-names"], paper["year"]) == ("Wu", 2021)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "cosmoflow/__init__.py"

    config = project["tool"]["towncrier"]
    changelog = (ROOT / config["filename"]).read_text()
    assert config["start_string"] in changelog
    released = re.findall(r"^## (\S+), \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    fragments = [path.name for path in (ROOT / config["directory"]).iterdir()]
    fragments.remove("README.md")
    # What the version changes is in the changelog, or waits to be put there.
    assert released[:1] == [cosmoflow.__version__] or fragments
    types = "|".join(one["directory"] for one in config["type"])
    assert [
        name for name in fragments if not re.fullmatch(rf"(\d+|\+.+)\.({types})\.md", name)
    ] == []
