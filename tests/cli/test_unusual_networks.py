"""Networks of users with unusual state or outputs, through the commands: trained, or refused before training."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from noiseprop.cli import main
from noiseprop.evaluation import settings
from noiseprop.training import read_metrics

NETS = """
import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(24, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, x):
        tokens = self.embed(x.transpose(1, 2).flatten(2))
        scores = tokens @ tokens.transpose(1, 2) + self.mask
        return self.head((scores.softmax(-1) @ tokens).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return self.head(y.view(len(y), -1))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(1, 4, 3, padding=1), nn.Linear(768, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x[:, None])).flatten(1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x):
        y = self.head(x.flatten(1))
        return (y, y) if self.training else y


class WithState(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x):
        return self.head(x.flatten(1))

    def get_extra_state(self):
        return {"passes": 3}

    def set_extra_state(self, state):
        pass


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.ones(192, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.flatten(1).to(torch.complex64) @ self.phase).real
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("unusual")
    (home / "unusual_nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.random((240, 8, 8, 3)) * 100 + 150 * np.eye(3)[y][:, None, None]).astype(np.uint8)
    np.savez(home / "shades.npz", x=x, y=y)
    return home


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(sys.path))
    few = replace(settings.SETTINGS["cifar10"], attack_images=10, trust_images=8, vote_draws=2, attack_draws=(1,))
    monkeypatch.setitem(settings.SETTINGS, "cifar10", replace(few, conditions=("clean", "fgsm")))
    yield
    sys.modules.pop("unusual_nets", None)


@pytest.mark.parametrize("name", ["Masked", "Tied", "Viewed", "Volume"])
def test_it_trains_resumes_evaluates_and_is_inspected(name, tmp_path, capsys):
    run, model = str(tmp_path / "run"), ["--model", f"unusual_nets:{name}"]
    asked = ["train", *model, "--noise", "linear", "--init", "0.1", "--data", "shades.npz", "--out", run]
    assert main([*asked, "--epochs", "4", "--lr", "0.01"]) == 0
    assert main([*asked, "--epochs", "5", "--lr", "0.01", "--resume"]) == 0
    epochs = read_metrics(Path(run))
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4, 5]
    assert epochs[-1].validation_accuracy > 0.6  # three classes by their colour
    assert main(["evaluate", run, *model]) == 0
    assert main(["inspect", run, *model, "--batches", "2"]) == 0
    assert capsys.readouterr().err.count("Traceback") == 0


@pytest.mark.parametrize(
    ("name", "sentence"), [("Pair", "tuple"), ("WithState", "get_extra_state"), ("Complex", "complex")]
)
def test_it_is_refused_in_one_sentence_with_nothing_written(name, sentence, tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main(["train", "--model", f"unusual_nets:{name}", "--data", "shades.npz", "--epochs", "1", "--out", str(run)])
        == 1
    )
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not run.exists() or not any(path.suffix in (".json", ".jsonl", ".safetensors") for path in run.iterdir())
