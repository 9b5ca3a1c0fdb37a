import json
import os
from dataclasses import replace

import msgspec
import pytest

from noiseprop.environment import describe_environment
from noiseprop.errors import RunError
from noiseprop.models.registry import RegisteredModelConfig
from noiseprop.training import Epoch, Recipe
from noiseprop.training import run_folder as folder
from noiseprop.training.run_config import DataConfig, RunSettings, SplitSizes

SETTINGS = RunSettings(
    model=RegisteredModelConfig("MLP"),
    data=DataConfig("mnist", 2021, (5, 1, 1), SplitSizes(5, 1, 1), "a" * 64),
    recipe=Recipe(),
    seed=0,
    extra={"betas": [0.9, 0.999]},
)


def line(epoch: int, loss: float = 0.5) -> Epoch:
    return Epoch(epoch, loss, 0.9, 0.6, 1.0, {}, 0.2)


def snapshot(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_new_run_keeps_its_settings(tmp_path):
    folder.open_run(tmp_path / "a" / "b", SETTINGS, resume=False)
    config = folder.read_config(tmp_path / "a" / "b")
    assert config.settings == SETTINGS
    assert config.made_with == describe_environment()


def test_an_empty_folder_is_used(tmp_path):
    folder.open_run(tmp_path, SETTINGS, resume=False)
    assert (tmp_path / "config.json").exists()


def test_an_existing_run_is_refused_and_left_alone(tmp_path):
    folder.open_run(tmp_path, SETTINGS, resume=False)
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match="holds a run already; continue it with --resume"):
        folder.open_run(tmp_path, SETTINGS, resume=False)
    folder.open_run(tmp_path, SETTINGS, resume=True)
    assert snapshot(tmp_path) == before


def test_other_settings_are_refused_by_name(tmp_path):
    folder.open_run(tmp_path, SETTINGS, resume=False)
    other = msgspec.structs.replace(SETTINGS, recipe=replace(SETTINGS.recipe, lr=1e-2), extra={"betas": [0, 1], "n": 3})
    with pytest.raises(RunError) as caught:
        folder.open_run(tmp_path, other, resume=True)
    assert "extra.n = None there and 3 now, recipe.lr = 0.001 there and 0.01 now;" in str(caught.value)
    assert "model" not in str(caught.value)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_other_things_is_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds other files than a run"):
        folder.open_run(tmp_path, SETTINGS, resume=resume)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(RunError, match="is a file, not a run folder"):
        folder.open_run(tmp_path / "x", SETTINGS, resume=False)
    with pytest.raises(RunError, match="could not be made"):
        folder.open_run(tmp_path / "x" / "y", SETTINGS, resume=False)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"format": 1, "settings"', "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[1]", "not the configuration of a run"),
        (b'{"format": 2, "settings": {}}', "its checksum is missing"),
    ],
)
def test_a_damaged_config_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=sentence):
        folder.read_config(tmp_path)


def test_a_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.json"):
        folder.read_config(tmp_path / "nowhere")


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    with pytest.raises(RunError, match="1,099,511,627,776 bytes"):
        folder.read_config(tmp_path)


def test_metrics_come_back_without_a_torn_last_line(tmp_path):
    for epoch in (1, 2, 3):
        folder.append_epoch(tmp_path, line(epoch, 1 / epoch))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "train_lo')
    assert folder.read_metrics(tmp_path) == [line(e, 1 / e) for e in (1, 2, 3)]
    assert folder.truncate_metrics(tmp_path, 2) == [line(e, 1 / e) for e in (1, 2)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text)["epoch"] for text in lines] == [1, 2]
    folder.append_epoch(tmp_path, line(3))
    assert len(folder.read_metrics(tmp_path)) == 3


def test_damage_before_the_last_line_is_an_error(tmp_path):
    folder.append_epoch(tmp_path, line(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(RunError, match="line 2 is damaged"):
        folder.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    folder.append_epoch(tmp_path, line(1))
    folder.append_epoch(tmp_path, line(3))
    with pytest.raises(RunError, match="line 2 should be epoch 2"):
        folder.read_metrics(tmp_path)


def test_metrics_shorter_than_the_checkpoint_are_an_error(tmp_path):
    folder.append_epoch(tmp_path, line(1))
    with pytest.raises(RunError, match="has 1 epochs, the checkpoint 2"):
        folder.truncate_metrics(tmp_path, 2)


def test_a_run_that_has_lost_its_checkpoint_does_not_start_again(tmp_path):
    folder.open_run(tmp_path, SETTINGS, resume=False)
    folder.append_epoch(tmp_path, line(1))
    folder.open_run(tmp_path, SETTINGS, resume=True)  # killed before its first checkpoint
    folder.append_epoch(tmp_path, line(2))
    with pytest.raises(
        RunError, match=r"state\.safetensors is missing, so the run cannot resume; .* move .* away and train again$"
    ):
        folder.open_run(tmp_path, SETTINGS, resume=True)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RunError, match=r"state\.safetensors is missing"):
        folder.open_run(tmp_path, SETTINGS, resume=True)


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append_epoch(tmp_path, line(1, float("nan")))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")

    def fails(aside):
        aside.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        folder.write_aside(path, fails)
    assert snapshot(tmp_path) == {"config.json": b"old"}
