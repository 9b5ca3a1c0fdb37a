import json
from dataclasses import replace

import pytest
from tests.report.made_up import evaluation, make_run

from noiseprop.errors import RunError
from noiseprop.evaluation.serialization import write_evaluation
from noiseprop.files.checksum import add_checksum
from noiseprop.report.run_groups import group_runs, read_run


def test_runs_that_differ_in_their_seed_alone_are_a_group(folders):
    groups = group_runs([read_run(folder) for folder in folders])
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [
        ("MLP", ["seed 0", "seed 1"]),
        ("MLPN", ["seed 0"]),
        ("CNN-AN", ["seed 0"]),
    ]


def test_what_tells_namesakes_apart_is_in_their_labels(tmp_path):
    def floor(settings):
        settings["objective"] = {"name": "Floor", "numbers": {"floor": 0.5}}

    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", epochs=2),
        make_run(tmp_path / "c", change=floor),
    ]
    labels = [group.label for group in group_runs([read_run(run) for run in runs])]
    assert labels == ["MLPN · epochs 3", "MLPN · epochs 2", "MLPN · epochs 3 · objective Floor · floor 0.5"]


def test_no_mean_is_taken_over_other_images_or_attacks(tmp_path):
    judged = evaluation("MLPN", 0)
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1, judged=replace(judged, digest="e" * 64)),
        make_run(tmp_path / "c", seed=2, judged=replace(judged, settings=replace(judged.settings, pgd_steps=99))),
        make_run(tmp_path / "d", seed=3, judged=None),
    ]
    groups = group_runs([read_run(run) for run in runs])
    assert [group.label for group in groups] == [
        "MLPN",
        "MLPN · evaluated differently (b)",
        "MLPN · evaluated differently (c)",
        "MLPN · not evaluated (d)",
    ]


def test_a_run_without_evaluation_says_how_to_get_one(tmp_path):
    run = read_run(make_run(tmp_path / "run", judged=None))
    assert run.evaluation is None
    assert run.troubles == (f"{run.path} was not evaluated; run `noiseprop evaluate {run.path}` for its figures",)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 10_000, b'{"format": "noiseprop evaluation", "version": 1}']
)
def test_a_damaged_evaluation_is_a_sentence(tmp_path, content):
    folder = make_run(tmp_path / "run")
    (folder / "evaluation.json").write_bytes(content)
    run = read_run(folder)
    assert run.evaluation is None
    assert len(run.epochs) == 3
    (sentence,) = run.troubles
    assert "not a usable evaluation" in sentence


def test_damaged_metrics_and_settings_are_sentences(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    config = json.loads((folder / "config.json").read_text())
    del config["settings"]["seed"]
    (folder / "config.json").write_text(json.dumps(add_checksum(config)))
    run = read_run(folder)
    assert (run.settings, run.epochs) == (None, ())
    assert len(run.troubles) == 2
    assert group_runs([run])[0].label == "run"


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        read_run(tmp_path / "absent")


def test_an_evaluation_of_other_seeds_joins_its_group_once_written(tmp_path):
    folder = make_run(tmp_path / "b", seed=1, judged=None)
    write_evaluation(evaluation("MLPN", 1), folder / "evaluation.json")
    (group,) = group_runs([read_run(make_run(tmp_path / "a")), read_run(folder)])
    assert len(group.evaluations) == 2
