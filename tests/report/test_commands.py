import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from noiseprop.cli import COMMANDS
from noiseprop.cli import _parse as parse
from noiseprop.models.registry import build
from noiseprop.report.commands import commands
from noiseprop.training import TABLE_1
from noiseprop.training.objective_config import describe_objective, make_objective


def settings(name="MLPN", data="mnist-5k", **recipe):
    return {
        "model": {"name": name, "activation": "relu", "seed": 5, "classes": 10},
        "data": {"name": data, "split_seed": 0},
        "recipe": asdict(replace(TABLE_1[data], **recipe)),
        "seed": 5,
    }


def parsed(lines):
    """The dataclasses that the command line makes of them."""
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert [(line[0], line[1]) for line in words] == [("noiseprop", "train"), ("noiseprop", "evaluate")]
    return [parse(line[1:]) for line in words]


def test_the_commands_ask_for_just_the_settings_of_the_run():
    told = settings(epochs=7, precision="bf16")
    told["model"]["activation"] = "sigmoid"
    train, evaluate = parsed(commands(told, Path("my runs/$HOME")))
    assert isinstance(train, COMMANDS["train"])
    asked = train._settings_of_a_new_run()
    assert asked["recipe"] == told["recipe"]
    assert (asked["model"], asked["seed"], asked["data"]["name"]) == (
        {"name": "MLPN", "activation": "sigmoid"} | ({"seed": 5} if "seed" in asked["model"] else {}),
        5,
        "mnist-5k",
    )
    assert train.out == evaluate.run_dir == Path("my runs/$HOME")


@pytest.mark.parametrize(("name", "number"), [("floor", 0.5), ("entropy", 0.1), ("power", 3.0), ("square-root", 1e-3)])
def test_the_objective_is_told(name, number):
    told = settings()
    told["objective"] = describe_objective(make_objective(name, number, build("MLPN")))
    train, _ = parsed(commands(told, Path("run")))
    assert (train.objective, train.objective_number) == (name, number)


def test_what_the_command_cannot_say_is_a_comment():
    told = settings(lr=0.5)
    told["model"]["init"] = "normal"
    remark, *_ = commands(told, Path("run"))
    assert remark == "# from Python (noiseprop.runs.trained_model.train_run), with lr 0.5, init normal"


def test_text_from_files_stays_one_word_of_the_shell():
    told = settings()
    told["model"]["name"] = "x; rm -rf /"
    told["model"]["init"] = "a\nrm -rf /"
    lines = commands(told, Path("run; reboot"))
    assert not any("\n" in line for line in lines)
    assert lines[0].startswith("#")
    assert shlex.split(lines[1])[3] == "x; rm -rf /"
    assert shlex.split(lines[2])[2] == "run; reboot"
