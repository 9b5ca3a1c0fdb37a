"""docs/reproduction.md and the results that it is made from belong together."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from tests.paper.documents import to_document, to_table

from noiseprop.evaluation.sanity_checks import CHECKS
from noiseprop.evaluation.settings import ATTACKS, CONDITIONS
from noiseprop.evaluation.statistics import wilson
from noiseprop.paper.page import describe_settings
from noiseprop.paper.results import read_table
from noiseprop.paper.specs import PROTOCOLS, TABLES, Row, choose_settings

ROOT = Path(__file__).parent.parent.parent
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "reproduction.py"))
RECORDS = SCRIPT["read_mnist_tables"]()
RESNETS, SALIENCY = SCRIPT["read_resnet_tables"](), SCRIPT["read_saliency"]()
NAMES = [f"{record.table}-{record.protocol}" for record in RECORDS]


def test_the_page_is_made_of_the_results():
    written = SCRIPT["PAGE"]
    made = SCRIPT["make_page"]()
    assert written.exists() == bool(made), "run `python docs/reproduction.py` and commit what it writes"
    if made:
        assert written.read_text(encoding="utf-8") == made, "run `python docs/reproduction.py`"


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_a_record_is_complete(record):
    rows: tuple[Row, ...] = TABLES[record.table]
    runs = {(run.row, run.seed) for run in record.runs}
    assert runs == {(row.name, seed) for row in rows for seed in record.seeds}
    assert len(record.runs) == len(runs)
    assert record.data == RECORDS[0].data
    assert (record.data.name, record.data.test_images) == ("mnist", 10_000)
    assert record.epochs == 30
    assert record.settings.attack_images >= 1000
    if record.protocol in PROTOCOLS:
        chosen = PROTOCOLS[record.protocol]
        assert set(record.departures) == chosen.departures
        assert tuple(record.settings.attack_draws) == choose_settings(chosen, "mnist").attack_draws
    for run in record.runs:
        assert all(0 < run.accuracy(condition) < 1 for condition in CONDITIONS)
        for score in run.scores:
            interval = wilson(score.right, score.images)
            assert (score.low, score.high) == pytest.approx((interval.low, interval.high), abs=1e-5)
        lengths = {len(run.course.train_loss), len(run.course.validation_loss), len(run.course.validation_accuracy)}
        assert len(lengths) == 1
        assert lengths <= set(range(1, 11)) if "early-stopping" in record.departures else lengths == {30}


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_figure_3_stands_beside_the_results(record):
    if record.table == "table3":
        for suffix in ("svg", "png"):
            assert (ROOT / "results" / f"figure3-{record.protocol}.{suffix}").exists()


LEAST = {
    "table5": (5, 1000, 250, "a copy decoded from JPEG"),
    "table6": (4, 250, 64, "with 100 of 500 training images"),
}
"""Of each table: epochs, test images, images attacked over many draws, and what its source says of the data."""


def test_both_tables_of_resnets_are_there():
    assert {record.table for record in RESNETS} == LEAST.keys()


@pytest.mark.parametrize("record", RESNETS, ids=[f"{r.table}-{r.protocol}" for r in RESNETS])
def test_a_record_of_resnets_is_complete_and_says_how_it_was_made(record):
    epochs, images, many, source = LEAST[record.table]
    rows = {row.name for row in TABLES[record.table]}
    assert {run.row for run in record.runs} == rows
    assert record.recipe.name in ("table1", "fast")
    assert record.recipe.augment is True
    assert source in record.data.source
    assert source in SCRIPT["make_page"]()
    assert record.data.test_images >= images
    most = max(record.settings.attack_draws)
    assert most == 20
    for run in record.runs:
        assert len(run.course.validation_loss) == record.epochs >= epochs
        assert len(run.findings) == len(CHECKS)
        assert all(0 <= run.accuracy(condition) <= 1 for condition in CONDITIONS)
        counts = {(s.condition, s.state, s.attack_draws): s.images for s in run.scores}
        assert {counts[attack, "off", 0] for attack in ATTACKS} == {record.data.test_images}
        if run.noisy:
            assert min(counts[attack, "one", most] for attack in ATTACKS) >= many
        for score in run.scores:
            interval = wilson(score.right, score.images)
            assert (score.low, score.high) == pytest.approx((interval.low, interval.high), abs=1e-5)


@pytest.mark.parametrize("name", SALIENCY)
def test_figure_4_stands_beside_its_record(name):
    record = SALIENCY[name]
    assert list(record.networks) == [row.name for row in TABLES["table6"]]
    assert {len(shares) for shares in record.shares.inside.values()} == {len(record.shares.box)}
    assert {path.suffix for path in (ROOT / "results").glob(f"{name}.*")} == {".json", ".svg", ".png"}


def test_votes_on_fewer_images_are_told():
    table = read_table(ROOT / "results" / "table4-released-code.json")
    assert "Votes of" not in describe_settings(table)
    record = to_document(table)
    run = next(run for run in record["runs"] if run["row"] == "CNN-AN")
    run["figures"]["clean/vote/0/0"][:2] = [1970, 2000]
    assert describe_settings(to_table(record)).endswith("Votes of CNN-AN: on the first 2,000.")
