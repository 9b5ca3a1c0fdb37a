"""Run folders from strangers: each command ends in one sentence that cannot steer the terminal."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fuzz.readers import config_seeds

from noiseprop.cli import main
from noiseprop.files.checksum import add_checksum
from noiseprop.models.registry import build
from noiseprop.training.checkpoint import save_model


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder as `noiseprop train` would have left it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes(config_seeds()[0])
    save_model(build("MLPN", classes=10), folder / "model.safetensors", epoch=1)
    return folder


def edit(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change config.json's settings."""

    def damage(run: Path) -> None:
        document = json.loads((run / "config.json").read_text())
        change(document["settings"])
        with suppress(ValueError):  # infinity has no checksum, and is found before it
            document = add_checksum(document)
        (run / "config.json").write_text(json.dumps(document))

    return damage


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in a file's place."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return damage


def not_a_number(path: Path) -> None:
    model = build("MLPN", classes=10)
    model.fc1.weight.data[0, 0] = torch.nan
    save_model(model, path, epoch=1)


def steers(settings: Any) -> None:
    settings["model"]["name"] = "MLPN\x1b]0;owned\x07\nnoiseprop: all is well\u202e"


HOSTILE = {
    "config.json is a pipe": (replace("config.json", os.mkfifo), "is not a run folder"),
    "config.json is a device": (replace("config.json", lambda p: p.symlink_to("/dev/zero")), "is not a run folder"),
    "config.json is a folder": (replace("config.json", Path.mkdir), "is not a run folder"),
    "a text with control characters": (edit(steers), "control characters"),
    "a number of 400 digits": (edit(lambda s: s["recipe"].update(lr=10**400)), "is not an integer of 64 bits"),
    "a rate of 1e999": (edit(lambda s: s["recipe"].update(lr=float("inf"))), "Infinity is not a finite number"),
    "a seed of 2^63": (edit(lambda s: s.update(seed=2**63)), "Expected `int`"),
    "10^12 classes": (edit(lambda s: s["model"].update(classes=10**12)), "Expected `int` <= 100000"),
    "a network that is none": (edit(lambda s: s["model"].update(name="os.system")), "is not a network of the paper"),
    "an option that is none": (edit(lambda s: s["model"].update(run="rm -rf /")), "unknown field `run`"),
    "another number of classes": (edit(lambda s: s["model"].update(classes=11)), "belongs to another network"),
    "data that are none": (edit(lambda s: s["data"].update(name="../../etc/passwd")), "etc/passwd: no"),
    "a pickle as model": (replace("model.safetensors", lambda p: p.write_bytes(b"\x80\x04\x95" * 9)), "is damaged"),
    "a pipe as model": (replace("model.safetensors", os.mkfifo), "is missing"),
    "NaN in the model": (replace("model.safetensors", not_a_number), "holds NaN or infinity"),
}


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_command_ends_in_one_sentence(command, name, run, capsys):
    damage, says = HOSTILE[name]
    damage(run)
    before = sorted(path.name for path in run.iterdir())
    assert main([command, str(run)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("noiseprop: ")
    assert says in told
    assert told[:-1].isprintable()
    assert told.endswith("\n")
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == before


def test_a_folder_cannot_steer_the_terminal_by_its_name(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "a\x1b[2J\nnoiseprop: done")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert r"a\x1b[2J\nnoiseprop: done is not a run folder" in told


def test_a_sentence_is_cut_where_a_file_would_fill_the_screen(run, capsys):
    edit(lambda settings: settings["model"].update(name="x" * 10**6))(run)
    assert main(["evaluate", str(run)]) == 1
    assert len(capsys.readouterr().err) < 2_100
