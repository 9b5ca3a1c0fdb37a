"""docs/security.md says what results/fuzz.json and the tests say."""

import copy
import json
from pathlib import Path

import pytest
from tests.fuzz.found import FOUND
from tests.fuzz.readers import READERS
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
RECORD = json.loads((ROOT / "results" / "fuzz.json").read_text())


@pytest.fixture(scope="module")
def script():
    return load_script("docs/security.py")


def test_the_tables_are_made_from_the_record_and_the_tests(script):
    assert script.updated(PAGE, RECORD) == PAGE
    other = copy.deepcopy(RECORD)
    other["readers"][0]["crashes"] = 1
    assert script.updated(PAGE, other) != PAGE


def test_a_page_without_marks_is_an_error(script):
    with pytest.raises(SystemExit, match="lacks the marks"):
        script.updated("# Security", RECORD)


def test_every_reader_is_on_record_without_a_crash():
    assert [run["reader"] for run in RECORD["readers"]] == list(READERS)
    for run in RECORD["readers"]:
        assert run["crashes"] == 0
        assert run["memory_mb"] < RECORD["limits"]["memory_mb"]
        assert run["found"] == [found.says for found in FOUND if found.reader == run["reader"]]
