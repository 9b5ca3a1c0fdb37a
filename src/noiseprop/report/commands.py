"""Commands that repeat a run, as text for a shell."""

import shlex
from dataclasses import asdict
from pathlib import Path

import msgspec

from noiseprop.errors import InputError
from noiseprop.models.registry import RegisteredModelConfig
from noiseprop.models.user_model import UserModelConfig
from noiseprop.training import TABLE_1
from noiseprop.training.objective_config import find_objective_name
from noiseprop.training.run_config import RunSettings

_RECIPE_BY_OPTION = ("epochs", "precision")  # fields of a recipe for which the command has options
_MODEL_BY_OPTION = ("name", "activation", "seed", "classes", "image", "noise", "granularity", "learn")


def list_commands_again(settings: RunSettings, path: Path) -> list[str]:
    """Return the commands that train and evaluate a run, and comments on settings that they cannot express.

    Args:
        settings: settings of the run.
        path: run folder.
    """
    model, recipe = settings.model, settings.recipe
    data = settings.data.path or settings.data.name
    arguments: list[object] = ["--model", model.name, "--data", data, "--epochs", recipe.epochs]
    arguments += ["--seed", settings.seed]
    if isinstance(model, UserModelConfig) and model.noise:
        arguments += ["--noise", *model.noise, "--granularity", model.granularity, "--init", model.init]
        arguments += [] if model.learn else ["--fixed-noise"]
    if isinstance(model, RegisteredModelConfig) and model.activation != "relu":
        arguments += ["--activation", model.activation]
    if recipe.precision != "fp32":
        arguments += ["--precision", recipe.precision]
    remarks = _list_remarks(settings)
    if settings.objective:
        try:
            name, number = find_objective_name(settings.objective)
            arguments += ["--objective", name, "--objective-number", number]
        except InputError as error:
            remarks.append(f"# {_one_line(error)}")
    train = shlex.join(["noiseprop", "train", *map(str, arguments), "--out", str(path)])
    trust = ["--model", model.name] if isinstance(model, UserModelConfig) else []
    return [*remarks, train, shlex.join(["noiseprop", "evaluate", str(path), *trust])]


def _list_remarks(settings: RunSettings) -> list[str]:
    """Return comments on settings that only Python can set."""
    recipe, table = asdict(settings.recipe), TABLE_1.get("mnist" if settings.data.path else settings.data.name)
    known = asdict(table) if table else {}
    word = "" if table else "recipe "
    other = [
        f"{word}{key} {value}"
        for key, value in recipe.items()
        if key not in _RECIPE_BY_OPTION and (not table or value != known[key])
    ]
    by_option = (*_MODEL_BY_OPTION, *(["init"] if isinstance(settings.model, UserModelConfig) else []))
    other += [
        f"{field.name} {value}"
        for field in msgspec.structs.fields(settings.model)
        if field.name not in by_option and (value := getattr(settings.model, field.name)) != field.default
    ]
    return (
        [f"# from Python (noiseprop.runs.trained_model.train_run), with {_one_line(', '.join(other))}"] if other else []
    )


def _one_line(text: object) -> str:
    """Return a text without line breaks, so that a comment stays a comment."""
    return " ".join(str(text).split())
