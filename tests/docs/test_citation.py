"""CITATION.cff against what the Citation File Format 1.2.0 requires, and against the package."""

import datetime
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip


def check_authors(authors: list[dict[str, Any]]) -> None:
    """A person has names of the parts of it, an entity one name."""
    assert authors
    for author in authors:
        assert "name" in author or {"family-names", "given-names"} <= set(author)
        assert all(isinstance(value, str) and value for value in author.values())


def test_it_has_the_required_keys_and_no_unknown_ones():
    assert {"authors", "cff-version", "message", "title"} <= set(CITATION) <= KEYS
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in ("software", "dataset")
    assert isinstance(CITATION["message"], str)
    assert all(isinstance(word, str) for word in CITATION["keywords"])
    check_authors(CITATION["authors"])
    if "date-released" in CITATION:
        assert isinstance(CITATION["date-released"], datetime.date)


def test_the_paper_is_what_is_to_be_cited():
    paper = CITATION["preferred-citation"]
    assert {"authors", "title", "type"} <= set(paper)
    assert paper["type"] == "article"
    assert [author["family-names"] for author in paper["authors"]] == ["Xiao", "Zhang", "Peng"]
    check_authors(paper["authors"])
    assert isinstance(paper["year"], int)
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", paper["url"])
    assert paper["url"] in (ROOT / "README.md").read_text()
    for identifier in paper["identifiers"]:
        assert identifier["type"] in ("doi", "url", "swh", "other")
        assert identifier["value"]


def test_it_is_of_this_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CITATION["version"] == project["version"]
    assert CITATION["title"] == project["name"]
    assert CITATION["license"] == project["license"]
    assert CITATION["abstract"].strip() == project["description"]
    assert f"\n## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
