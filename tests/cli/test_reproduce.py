import json
from dataclasses import replace

import msgspec
import pytest

from noiseprop.cli import main
from noiseprop.evaluation import settings
from noiseprop.paper import grid, specs
from noiseprop.paper.job import TableSpec
from noiseprop.paper.published import COLUMNS
from noiseprop.paper.results import RunResult, make_table_result, read_table, write_table
from noiseprop.paper.specs import Row

COURSE = [("train", "loss"), ("validation", "loss"), ("validation", "accuracy"), ("test", "accuracy")]
QUICK = ["--data", "mnist-5k", "--epochs", "1", "--seeds", "1"]


@pytest.fixture
def few(monkeypatch):
    """Two rows, judged on a few images."""
    chosen = replace(settings.SETTINGS["mnist-5k"], attack_images=20, trust_images=8, vote_draws=2, attack_draws=(1, 2))
    monkeypatch.setitem(settings.SETTINGS, "mnist-5k", chosen)
    monkeypatch.setitem(specs.TABLES, "table3", (Row("MLP"), Row("MLPN")))


def test_a_table_is_written_printed_and_not_done_twice(few, tmp_path, capsys, monkeypatch):
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]
    command = ["reproduce", "table3", *QUICK, "--jobs", "2", *folders]
    assert main(command) == 0
    said = capsys.readouterr()
    path = tmp_path / "results" / "table3-paper-mnist-5k.json"
    record = read_table(path)
    assert [run.key for run in record.runs] == [("MLP, ReLU", 0), ("MLPN, ReLU", 0)]
    assert record.data.test_images == 714
    for run in record.runs:
        for condition in COLUMNS:
            assert 0 <= run.accuracy(condition) <= 1
        assert run.accuracy("clean") > 0.12
        assert len(run.findings) == 6
        assert len(run.course.test_accuracy) == 1
    assert f"{record.format_cell('MLPN, ReLU', 'clean')} (0.921)" in said.out
    assert max(len(line) for line in said.out.splitlines() if line.startswith("MLP")) <= 110
    assert "Accuracy: ours, mean ± uncertainty from the images of one seed (the paper's)." in said.out
    assert record.made_with["threads"] == max(1, grid.count_cores() // 2)  # two processes share the cores
    assert "table3: MLPN, ReLU, seed 0 is done, " in said.err
    assert str(path) in said.out
    before = path.read_bytes()
    monkeypatch.setattr("noiseprop.paper.grid.ProcessPoolExecutor", None)
    assert main(command) == 0
    assert path.read_bytes() == before
    assert "table3: MLPN, ReLU, seed 0 is done, 2 of 2" in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(record))
    nowhere = ["--runs", str(tmp_path / "none"), "--out", str(tmp_path / "results")]  # as on another machine
    assert main([*command[:2], *QUICK, *nowhere]) == 0
    assert capsys.readouterr().out == said.out
    assert main([*command[:2], *QUICK, *nowhere, "--judge", "bf16"]) == 1
    assert "judged_in is 'fp32' there and 'bf16' now; use the same or choose" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert not (tmp_path / "none").exists()


def test_figure_3_needs_the_results_alone(few, tmp_path, capsys, monkeypatch):
    rows = (Row("MLP"), Row("MLP+"), Row("MLPN"))
    monkeypatch.setitem(specs.TABLES, "table3", rows)
    plan = TableSpec("table3", specs.PROTOCOLS["paper"], "mnist-5k", None, 1, "fp32", "table1", None, tmp_path / "none")
    runs = [
        {
            "row": row.name,
            "seed": seed,
            "noisy": False,
            "seconds_per_epoch": 1.5,
            "course": {**{f"{part}_{what}": [0.5] for part, what in COURSE}, "train_accuracy": [0.5], "sigma": {}},
            "scores": [
                [condition, "off", 0, severity, 7, 10, 0.4, 0.9]
                for condition in settings.CONDITIONS
                for severity in (range(1, 6) if condition in settings.CORRUPTIONS else (0,))
            ],
            "findings": [],
        }
        for row in rows
        for seed in range(2)
    ]
    path = tmp_path / "table3-paper-mnist-5k.json"
    empty = make_table_result(plan, [])
    trust_images = {row.name: 256 for row in rows}
    results = tuple(msgspec.convert(run, RunResult) for run in runs)
    write_table(msgspec.structs.replace(empty, trust_images=trust_images, runs=results), path)
    before = path.read_bytes()
    monkeypatch.setattr("noiseprop.paper.grid.ProcessPoolExecutor", None)
    command = ["reproduce", "figure3", *QUICK, "--runs", str(plan.root), "--out", str(tmp_path)]
    assert main(command) == 0
    shown = {p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")}
    assert shown == {path.name, *(f"figure3-paper-mnist-5k.{s}" for s in ("svg", "png"))}
    assert path.read_bytes() == before
    said = capsys.readouterr()
    assert "figure3: MLPN, ReLU, seed 0 is done, 3 of 3" in said.err
    assert "Table 1's recipe: Adam 0.001, constant, 1 epoch in fp32" in said.out
    assert main([command[0], "table3", *command[2:]]) == 0  # one seed is asked for, the file holds two
    assert "mean ± standard deviation over 2 seeds" in capsys.readouterr().out
    path.write_bytes(before[:-9])
    assert main(command) == 1
    assert f"noiseprop: {path} is damaged (" in capsys.readouterr().err
    assert path.read_bytes() == before[:-9]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--switch", "sign"], "'sign' is not a departure of the released code; choose from gradient-sign, sigma-adam"),
        (["--seeds", "0"], "--seeds is 0; give 1 or more"),
        (["--jobs", "0"], "--jobs is 0; give 1 or more"),
        (["--epochs", "0"], "--epochs is 0; give 1 or more"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table3", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("noiseprop: ")
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
