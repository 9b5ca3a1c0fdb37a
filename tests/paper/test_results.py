import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.paper.documents import to_builtins, to_document

from noiseprop.errors import RunError
from noiseprop.evaluation import settings
from noiseprop.files.checksum import add_checksum
from noiseprop.paper import specs
from noiseprop.paper.job import TableSpec, describe_test_images
from noiseprop.paper.results import extend_table, read_finished_runs, read_table
from noiseprop.paper.run_job import EVALUATION, FinishedRun, is_finished, read_finished, run_job
from noiseprop.paper.specs import PROTOCOLS, Row

ROWS = (Row("MLP"), Row("MLPN"))
FEW = {
    "conditions": ("clean", "contrast"),
    "attack_images": 20,
    "trust_images": 8,
    "vote_draws": 2,
    "attack_draws": (1,),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Two rows, trained for an epoch and judged on a few images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.SETTINGS, "mnist-5k", replace(settings.SETTINGS["mnist-5k"], **FEW))
        patch.setitem(specs.TABLES, "table3", ROWS)
        root = tmp_path_factory.mktemp("runs")
        yield TableSpec("table3", PROTOCOLS["paper"], "mnist-5k", None, 1, "fp32", "table1", 100, root)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(plan) -> list[FinishedRun]:
    """Both rows with seed 0, and the first with seed 1."""
    jobs = [plan.make_job(ROWS[0], 0), plan.make_job(ROWS[1], 0), plan.make_job(ROWS[0], 1)]
    for job in jobs:
        run_job(job, lambda done, total, what: None)
    return [read_finished(job) for job in jobs]


@pytest.fixture
def path(plan, runs, tmp_path) -> Path:
    """A results file with the first two."""
    extend_table(tmp_path / "table3-paper-mnist-5k.json", plan, runs[:2])
    return tmp_path / "table3-paper-mnist-5k.json"


def keys(record: Any) -> list[tuple[str, int]]:
    return [(run["row"], run["seed"]) for run in record["runs"]]


def edit(path: Path, change: Callable[[Any], object]) -> bytes:
    document = to_document(read_table(path))
    change(document)
    path.write_text(
        json.dumps(add_checksum(to_builtins(document) if isinstance(document["runs"][0], dict) else document))
    )
    return path.read_bytes()


def test_a_file_grows_and_loses_nothing(plan, runs, path, tmp_path):
    both = to_document(read_table(path))
    assert keys(both) == [("MLP, ReLU", 0), ("MLPN, ReLU", 0)]
    assert both["trust_images"] == {"MLP, ReLU": 8, "MLPN, ReLU": 8}
    edit(path, lambda record: record["runs"][0].update(seconds_per_epoch=99.0))  # as another machine measured it
    record = extend_table(path, plan, [runs[2], runs[0]])
    assert record == read_table(path)
    record = to_document(record)
    assert keys(record) == [("MLP, ReLU", 0), ("MLPN, ReLU", 0), ("MLP, ReLU", 1)]
    assert read_table(path).seeds == [0, 1]
    assert record["runs"][0]["seconds_per_epoch"] == 99.0
    assert record["runs"][1] == both["runs"][1]
    assert [read_table(path).has_run(plan.make_job(row, 1)) for row in ROWS] == [True, False]
    one_by_one = tmp_path / "other.json"
    for run in reversed(runs):
        extend_table(one_by_one, plan, [run])
    extend_table(tmp_path / "at once.json", plan, runs)
    assert one_by_one.read_bytes() == (tmp_path / "at once.json").read_bytes()


def test_evaluation_files_alone_hold_every_figure(runs, path):
    """Read by a few lines that know nothing of noiseprop but the file's words."""
    record = to_document(read_table(path))
    for run, kept in zip(runs, record["runs"], strict=False):
        document = json.loads((run.job.folder / EVALUATION).read_text())
        figures: dict[str, list[int]] = {}
        for m in document["measurements"]:
            correct = np.unpackbits(np.frombuffer(base64.b64decode(m["correct"]), np.uint8))[: m["n"]]
            key = "/".join(str(m[part]) for part in ("condition", "state", "attack_draws", "severity"))
            figures[key] = [int(correct.sum()), len(correct)]
        assert figures == {key: figure[:2] for key, figure in kept["figures"].items()}
        assert [(f["name"], f["outcome"]) for f in document["findings"]] == [
            (f["name"], f["outcome"]) for f in kept["findings"]
        ]
        assert (document["about"]["model"], document["about"]["seed"]) == (run.job.row.model, kept["seed"])
        assert document["digest"] == record["data"]["digest"]


def test_tables_are_made_without_the_networks(plan, path, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    shutil.copytree(plan.root, root, ignore=shutil.ignore_patterns("*.safetensors", "surrogates"))
    assert not list(root.rglob("*.safetensors"))
    monkeypatch.setattr("noiseprop.paper.run_job.build_row", None)
    elsewhere = replace(plan, root=root)
    extend_table(tmp_path / "table3.json", elsewhere, read_finished_runs(elsewhere))
    assert read_table(tmp_path / "table3.json").runs[:2] == read_table(path).runs


def test_without_new_runs_nothing_is_written(plan, runs, path, tmp_path):
    before = path.stat()
    assert extend_table(path, plan, runs[:1]) == read_table(path)
    assert path.stat() == before
    assert extend_table(tmp_path / "none.json", plan, []).runs == ()
    assert not (tmp_path / "none.json").exists()


def test_a_run_tells_what_it_was_made_with_where_the_file_tells_otherwise(plan, runs, path):
    edit(path, lambda record: record["made_with"].update(torch="2.0.0"))
    record = to_document(extend_table(path, plan, runs))
    assert record["made_with"]["torch"] == "2.0.0"
    assert [run.get("made_with") for run in record["runs"]] == [None, None, dict(runs[2].evaluation.versions)]


def test_a_file_that_lacks_a_field_is_damaged(plan, path):
    for name in ("recipe", "judged_in", "trust_images"):
        text = path.read_text()
        edit(path, lambda record, name=name: record.pop(name))
        with pytest.raises(RunError, match=f"is damaged .Object missing required field `{name}`"):
            extend_table(path, plan, [])
        path.write_text(text)


def test_the_digest_identifies_the_images_and_not_their_source(plan, path):
    edit(path, lambda record: record["data"].update(source="the same digits from another file"))
    extend_table(path, plan, [])
    with pytest.raises(RunError, match="judged_in is 'fp32' there and 'bf16' now; use the same"):
        extend_table(path, replace(plan, judged_in="bf16"), [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": PROTOCOLS["released-code"]}, "protocol is 'paper' there and 'released-code' now, departures is"),
        ({"epochs": 2}, "settings: epochs is 1 there and 2 now; use the same or choose another folder with --out"),
        ({"precision": "bf16"}, "settings: precision is 'fp32' there and 'bf16' now; use"),
        ({"judged_in": "bf16"}, "settings: judged_in is 'fp32' there and 'bf16' now; use"),
        ({"test_images": 50}, "settings: data.test_images is 100 there and 50 now, data.digest is"),
        ({"recipe_name": "fast"}, "recipe.name is 'table1' there and 'fast' now"),
    ],
)
def test_other_settings_are_refused(change, says, plan, runs, path):
    before = path.read_bytes()
    with pytest.raises(RunError) as error:
        extend_table(path, replace(plan, **change), runs)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{path} holds runs with other settings: ")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["data"].update(digest="0"), "data.digest is '0' there and "),
        (lambda r: r["settings"].update(pgd_steps=7), "settings: settings.pgd_steps is 7 there and 10 now; use"),
        (lambda r: r["departures"].append("conv-mean"), "settings: departures is ['conv-mean'] there and [] now; use"),
        (lambda r: r["recipe"].update(lr=0.5), "settings: recipe.lr is 0.5 there and 0.001 now; use"),
        (lambda r: r["data"].update(train=9), "settings: data.train is 9 there and "),
    ],
)
def test_files_of_other_settings_are_refused(change, says, plan, path):
    edit(path, change)
    with pytest.raises(RunError) as error:
        extend_table(path, plan, [])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["runs"].append(r["runs"][0]), "a run occurs twice"),
        (
            lambda r: r.update(table="table4"),
            "it has a run of 'MLP, ReLU' with seed 0, which is not a row of the table",
        ),
        (lambda r: r["runs"][0].update(row="CNN"), "it has a run of 'CNN' with seed 0"),
        (lambda r: r["runs"][0].update(seed=True), "Expected `int`, got `bool` - at `$.runs[0].seed`"),
        (lambda r: r["runs"][0].pop("figures"), "Object missing required field `scores` - at `$.runs[0]`"),
        (lambda r: r["runs"][1]["figures"].pop("contrast/one/0/3"), "no accuracy for contrast, one, EOT-0 is recorded"),
        (
            lambda r: r["runs"][0]["figures"].update({"clean/off/0/0": [3, 2, 0, 1]}),
            "clean: 3 of 2 is not within 0.0 to 1.0 - at `$.runs[0].scores",
        ),
        (
            lambda r: r["runs"][0]["figures"].update({"clean/off/0/0": [0, 0, 0, 1]}),
            "Expected `int` >= 1 - at `$.runs[0].scores",
        ),
        (
            lambda r: r["runs"][0]["course"].update(train_loss=[]),
            "a course has curves of different lengths or of none - at `$.runs[0].course`",
        ),
        (
            lambda r: r["runs"][0]["course"].update(test_accuracy=["0.9"]),
            "Expected `float`, got `str` - at `$.runs[0].course.test_accuracy[0]`",
        ),
        (lambda r: r.update(data=5), "Expected `object`, got `int` - at `$.data`"),
        (lambda r: r.update(runs=[None]), "Expected `object`, got `null` - at `$.runs[0]`"),
    ],
)
def test_damage_is_told_and_nothing_lost(change, says, plan, runs, path):
    before = edit(path, change)
    with pytest.raises(RunError) as error:
        extend_table(path, plan, runs)
    assert str(error.value).startswith(f"{path} is damaged (")
    assert says in str(error.value)
    assert str(error.value).endswith("); restore an intact copy, or move it away and run `noiseprop reproduce` again")
    assert path.read_bytes() == before


def test_a_cut_file_and_one_with_nan_are_damaged(plan, path):
    text = path.read_text()
    for other in (text[:-10], text.replace('"noisy": false', '"noisy": NaN')):
        path.write_text(other)
        with pytest.raises(RunError, match="is damaged"):
            extend_table(path, plan, [])


def test_other_images_are_another_evaluation(plan, runs):
    job = runs[0].job
    assert is_finished(job)
    assert describe_test_images(job)[0] == 100
    assert not is_finished(replace(job, test_images=50))
    with pytest.raises(RunError, match="the run is not finished"):
        read_finished(replace(job, test_images=50))
