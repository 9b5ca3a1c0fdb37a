import json

import pytest

from noiseprop.cli import main
from noiseprop.errors import InputError
from noiseprop.runs.trained_model import load_run
from noiseprop.training import read_metrics
from noiseprop.training import tensorboard as module

TRAIN = ["train", "--data", "mnist-5k", "--model", "MLPN"]


def events(folder):
    """The event files of a folder, read by TensorBoard itself: scalars and histograms by tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    read.Reload()
    tags = read.Tags()
    return {t: read.Scalars(t) for t in tags["scalars"]}, {t: read.Histograms(t) for t in tags["histograms"]}


def test_the_event_files_hold_the_metrics_and_the_sigmas(tmp_path):
    run, board = tmp_path / "run", tmp_path / "board"
    assert main([*TRAIN, "--epochs", "1", "--out", str(run), "--tensorboard", str(board)]) == 0
    assert main(["train", "--resume", "--epochs", "2", "--out", str(run), "--tensorboard", str(board)]) == 0
    scalars, histograms = events(board)
    lines = read_metrics(run)
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"):
        assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in scalars[name]] == [
            (n, getattr(lines[n - 1], name)) for n in (1, 2)
        ]
    model, _ = load_run(run)
    for layer, count in (("fc1", 100), ("fc2", 50), ("fc3", 10)):
        for name in ("mean", "std", "min", "max"):
            told = [e.value for e in scalars[f"sigma/{layer}/{name}"]]
            assert told == pytest.approx([getattr(line.sigma[f"{layer}.noise"], name) for line in lines], rel=1e-5)
        first, last = (e.histogram_value for e in histograms[f"sigma/{layer}"])
        sigma = model.get_submodule(f"{layer}.noise").sigma.detach().abs().double()
        assert (first.num, last.num) == (count, count)
        ends = [float(value) for value in (sigma.min(), sigma.max(), sigma.sum())]
        assert [last.min, last.max, last.sum] == pytest.approx(ends, rel=1e-6)
        assert first.sum != last.sum
    assert len(scalars) == 5 + 3 * 4


def test_it_changes_nothing_of_the_run(tmp_path):
    for name, more in (("with", ["--tensorboard", str(tmp_path / "board")]), ("without", [])):
        assert main([*TRAIN, "--epochs", "1", "--out", str(tmp_path / name), *more]) == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert models[0] == models[1]
    assert json.loads((tmp_path / "with" / "config.json").read_text()) == json.loads(
        (tmp_path / "without" / "config.json").read_text()
    )


def test_where_it_is_not_installed_that_is_said_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install noiseprop\[tensorboard\]"), module.log_to_tensorboard(tmp_path):
        pass
    assert main([*TRAIN, "--out", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "board")]) == 1
    assert "--tensorboard needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with module.log_to_tensorboard(None) as nothing:
        assert nothing is None
