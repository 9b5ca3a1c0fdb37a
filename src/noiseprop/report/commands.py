"""How to make a run again: the commands, as text for a shell."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

from noiseprop.errors import InputError
from noiseprop.models.registry import build
from noiseprop.models.user_model import is_own
from noiseprop.training import TABLE_1
from noiseprop.training.objective_config import name_and_number

_BY_OPTION = ("epochs", "precision")  # of a recipe, what the command has options for
_MODEL_BY_OPTION = ("name", "activation", "seed", "classes", "image", "noise", "granularity", "learn")
_DEFAULTS = {name: option.default for name, option in signature(build).parameters.items()}


def commands(settings: Mapping[str, Any], path: Path) -> list[str]:
    """The commands that train and judge a run, and comments on what they cannot say.

    Args:
        settings: as `paper.runs.read_settings` returns them.
        path: the run's folder.
    """
    model, data, recipe = settings["model"], settings["data"], settings["recipe"]
    arguments = ["--model", model["name"], "--data", data.get("path", data["name"]), "--epochs", recipe["epochs"]]
    arguments += ["--seed", settings["seed"]]
    own = is_own(model["name"])
    if own and model["noise"]:
        arguments += ["--noise", *model["noise"], "--granularity", model["granularity"], "--init", model["init"]]
        arguments += [] if model["learn"] else ["--fixed-noise"]
    if model.get("activation", "relu") != "relu":
        arguments += ["--activation", model["activation"]]
    if recipe["precision"] != "fp32":
        arguments += ["--precision", recipe["precision"]]
    remarks = _remarks(settings)
    if settings.get("objective"):
        try:
            name, number = name_and_number(settings["objective"])
            arguments += ["--objective", name, "--objective-number", number]
        except InputError as error:
            remarks.append(f"# {_one_line(error)}")
    train = shlex.join(["noiseprop", "train", *map(str, arguments), "--out", str(path)])
    trust = ["--model", model["name"]] if own else []
    return [*remarks, train, shlex.join(["noiseprop", "evaluate", str(path), *trust])]


def _remarks(settings: Mapping[str, Any]) -> list[str]:
    """What only Python can set, as comments."""
    recipe, table = settings["recipe"], TABLE_1.get("mnist" if "path" in settings["data"] else settings["data"]["name"])
    by_option = (*_MODEL_BY_OPTION, *(["init"] if is_own(settings["model"]["name"]) else []))
    other = [f"recipe {key} {value}" for key, value in recipe.items() if key not in _BY_OPTION]
    if table:
        known = asdict(table)
        other = [f"{key} {recipe[key]}" for key in recipe if key not in _BY_OPTION and recipe[key] != known.get(key)]
    other += [
        f"{key} {value}"
        for key, value in settings["model"].items()
        if key not in by_option and value != _DEFAULTS.get(key)
    ]
    return (
        [f"# from Python (noiseprop.runs.trained_model.train_run), with {_one_line(', '.join(other))}"] if other else []
    )


def _one_line(text: object) -> str:
    """Without line breaks, so that a comment stays one whatever a file says."""
    return " ".join(str(text).split())
