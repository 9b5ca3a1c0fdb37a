"""docs/faults.md says what the results say, and these say what the project promises."""

import json
from pathlib import Path

import pytest
from tests.faults.table import FAULTS
from tests.scripts import load_script

from noiseprop.files.checksum import verify_checksum

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_script("docs/faults.py")


@pytest.fixture(scope="module")
def table(script):
    return verify_checksum(json.loads(script.TABLE.read_text()))


@pytest.fixture(scope="module")
def long_run(script):
    return json.loads(script.LONG_RUN.read_text())


def test_the_page_is_made_from_the_results(script, table, long_run):
    assert script.PAGE.read_text() == script.page(table, long_run)


def test_every_fault_was_tried(table):
    assert {row["name"]: row["fault"] for row in table["faults"]} == FAULTS
    tried = {row["name"]: row["tried"] for row in table["faults"]}
    assert all(tried[row["name"]] == sum(row["outcomes"].values()) > 0 for row in table["faults"])
    assert tried["kill"] == 20


@pytest.mark.parametrize(("name", "done"), [("steps", 5000), ("evaluations", 50)])
def test_nothing_grows(long_run, name, done):
    samples = long_run["figures"][name]
    assert samples[-1]["done"] >= done
    settled = [sample for sample in samples if sample["done"] >= done / 5]
    assert len(settled) >= 4
    assert settled[-1]["memory"] - settled[0]["memory"] < 5
    assert {sample["handles"] for sample in settled} == {settled[0]["handles"]}
    assert {sample["temporary"] for sample in samples} == {1}  # torch's own
