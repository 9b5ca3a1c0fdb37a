import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from noiseprop.cli import COMMANDS
from noiseprop.cli import _parse_command as parse
from noiseprop.models.registry import RegisteredModelConfig, build
from noiseprop.report.commands import list_commands_again
from noiseprop.training import TABLE_1
from noiseprop.training.objective_config import describe_objective, make_objective
from noiseprop.training.run_config import DataConfig, RunSettings, SplitSizes


def settings(name="MLPN", data="mnist-5k", **recipe):
    return RunSettings(
        model=RegisteredModelConfig(name, seed=5, classes=10),
        data=DataConfig(data, 0, (5, 1, 1), SplitSizes(5, 1, 1), "a" * 64),
        recipe=replace(TABLE_1[data], **recipe),
        seed=5,
    )


def with_model(told, **options):
    return structs.replace(told, model=structs.replace(told.model, **options))


def parsed(lines):
    """The dataclasses that the command line makes of them."""
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert [(line[0], line[1]) for line in words] == [("noiseprop", "train"), ("noiseprop", "evaluate")]
    return [parse(line[1:]) for line in words]


def test_the_commands_ask_for_just_the_settings_of_the_run():
    told = with_model(settings(epochs=7, precision="bf16"), activation="sigmoid")
    train, evaluate = parsed(list_commands_again(told, Path("my runs/$HOME")))
    assert isinstance(train, COMMANDS["train"])
    asked = train._make_request()
    assert asked.recipe == told.recipe
    assert (asked.model, asked.options, asked.seed, asked.data) == ("MLPN", {"activation": "sigmoid"}, 5, "mnist-5k")
    assert train.out == evaluate.run_dir == Path("my runs/$HOME")


@pytest.mark.parametrize(("name", "number"), [("floor", 0.5), ("entropy", 0.1), ("power", 3.0), ("square-root", 1e-3)])
def test_the_objective_is_told(name, number):
    objective = describe_objective(make_objective(name, number, build("MLPN")))
    told = structs.replace(settings(), objective=objective)
    train, _ = parsed(list_commands_again(told, Path("run")))
    assert (train.objective, train.objective_number) == (name, number)


def test_what_the_command_cannot_say_is_a_comment():
    told = with_model(settings(lr=0.5), init="normal")
    remark, *_ = list_commands_again(told, Path("run"))
    assert remark == "# from Python (noiseprop.runs.trained_model.train_run), with lr 0.5, init normal"


def test_text_from_files_stays_one_word_of_the_shell():
    told = with_model(settings(), name="x; rm -rf /", init="a\nrm -rf /")
    lines = list_commands_again(told, Path("run; reboot"))
    assert not any("\n" in line for line in lines)
    assert lines[0].startswith("#")
    assert shlex.split(lines[1])[3] == "x; rm -rf /"
    assert shlex.split(lines[2])[2] == "run; reboot"
