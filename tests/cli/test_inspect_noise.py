import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from noiseprop.cli import main
from noiseprop.runs.trained_model import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mlpn"
    assert main(["train", "--data", "mnist-5k", "--epochs", "1", "--model", "MLPN", "--out", str(folder)]) == 0
    return folder


def test_prints_a_table_and_keeps_picture_and_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert main(["inspect", str(run), "--batches", "30"]) == 0  # more than the data set has
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["layer", "fc1", "fc2", "fc3"]
    assert str(run / "noise.png") in said
    figures = load_file(run / "noise.safetensors")
    model, _ = load_run(run)
    torch.testing.assert_close(figures["fc1.sigma"], model.fc1.noise.sigma.detach().double().abs(), rtol=1e-12, atol=0)
    assert figures["fc2.snr"].shape == (50,)
    assert (run / "noise.png").read_bytes().startswith(b"\x89PNG")
    assert {name: (run / name).read_bytes() for name in before} == before  # the run itself is untouched

    first = (run / "noise.safetensors").read_bytes()
    assert main(["inspect", str(run), "--batches", "30"]) == 0
    assert (run / "noise.safetensors").read_bytes() == first


def test_json_is_the_table_for_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--batches", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in found["layers"]] == ["fc1", "fc2", "fc3"]
    assert (found["model"], found["data"], found["batches"], found["batch_size"]) == ("MLPN", "mnist-5k", 5, 128)
    sigma = load_file(found["neurons"])["fc2.sigma"]
    assert (
        found["layers"][1]["sigma"]
        == torch.quantile(sigma, sigma.new_tensor([0.1, 0.5, 0.9]), interpolation="nearest").tolist()
    )
    assert Path(found["picture"]) == run / "noise.png"


def test_errors_are_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "mlp"
    assert main(["train", "--data", "mnist-5k", "--epochs", "1", "--model", "MLP", "--out", str(plain)]) == 0
    capsys.readouterr()
    for arguments, expected in (
        ([str(plain)], "MLP, which has no noise"),
        ([str(run), "--batches", "1"], "at least 2"),
        ([str(tmp_path / "nothing")], "not a run folder"),
    ):
        assert main(["inspect", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("noiseprop: ")
        assert said.count("\n") == 1
        assert expected in said
