"""Runs of the paper's networks: what is trained by name can be loaded by its folder."""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from noiseprop.data import Dataset, Split, digest, load, split
from noiseprop.errors import InputError, RunError
from noiseprop.noise.objectives import Objective
from noiseprop.paper.variants import architecture, build
from noiseprop.training import Epoch, Recipe, load_model, read_config, train
from noiseprop.training.checkpoint import MODEL
from noiseprop.training.continuing import other_data
from noiseprop.training.loop import Progress
from noiseprop.training.run_folder import CONFIG

_DEFAULTS: dict[str, Any] = {
    name: option.default for name, option in signature(build).parameters.items() if name != "name"
}
_TYPES: dict[str, tuple[type, ...]] = {  # of the same in config.json
    **{name: (type(default),) for name, default in _DEFAULTS.items()},
    "classes": (int, type(None)),
    "init": (int, float, str),
}


def train_run(
    name: str,
    dataset: Dataset,
    recipe: Recipe,
    run_dir: Path | None,
    *,
    seed: int = 0,
    objective: Callable[[nn.Module], Objective] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[nn.Module, list[Epoch]]:
    """Build one of the paper's networks and train it on a data set's training part.

    Args:
        name: one of `NAMES`.
        dataset: all images; they are split here.
        recipe: how to train.
        run_dir: where to keep the run, from which `load_run` reads it; None keeps nothing.
        seed: of the weights, the noise and the order of the images.
        objective: makes the noise's objective for the network; the plain loss if None.
        resume: continue the run in `run_dir`, or start it there.
        progress: as for `train`.
        options: more keyword arguments of `build`.

    Returns:
        The trained network and its epochs.

    Raises:
        InputError: the network does not exist or does not take the data set's images.
        RunError: see `train`.
    """
    takes, has = architecture(name).image, tuple(dataset.images.shape[1:])
    if takes != has:
        raise InputError(
            f"{name} takes images of shape {takes}, those of {dataset.name} have {has}; choose another one"
        )
    chosen: dict[str, Any] = {**_DEFAULTS, **options, "seed": seed, "classes": len(dataset.classes)}
    model = build(name, **chosen)
    epochs = train(
        model,
        split(dataset),
        recipe,
        run_dir,
        seed=seed,
        objective=None if objective is None else objective(model),
        settings={"model": _as_recorded(run_dir, {"name": name, **chosen})},
        resume=resume,
        progress=progress,
    )
    return model, epochs


def load_run(run_dir: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run as its last finished epoch left it, and the run's settings.

    Raises:
        RunError: the folder is no run, has no finished epoch, or is damaged.
    """
    settings = read_settings(run_dir)
    try:
        model = build(**settings["model"])
    except (TypeError, ValueError) as error:
        raise RunError(f"{run_dir}: config.json does not name a network of the paper ({error})") from error
    load_model(model, run_dir / MODEL)
    return model, settings


def read_settings(run_dir: Path) -> dict[str, Any]:
    """The settings of a run of one of the paper's networks: "model" (complete), "data", "recipe", "seed", ...

    Raises:
        RunError: the folder is no run, or its config.json is damaged or of another kind of run.
    """
    settings = read_config(run_dir)["settings"]
    model, data = settings.get("model"), settings.get("data")
    if not (isinstance(model, dict) and isinstance(model.get("name"), str)):
        raise RunError(f"{run_dir}: config.json does not name a network of the paper; use it from Python")
    whole = isinstance(data, dict) and isinstance(data.get("name"), str) and _is_seed(data.get("split_seed"))
    if not (whole and _is_seed(settings.get("seed"))):
        raise RunError(f"{run_dir}: config.json does not tell data, split and seed; train the run again elsewhere")
    try:
        Recipe.from_json(settings.get("recipe", {}))
    except (AttributeError, ValueError) as error:
        raise RunError(f"{run_dir}: config.json is damaged ({error}); train the run again elsewhere") from error
    for option, value in model.items():
        if option in _TYPES and type(value) not in _TYPES[option]:
            raise RunError(f"{run_dir}: config.json has {option} {value!r}; train the run again elsewhere")
    return {**settings, "model": {**_DEFAULTS, **model}}


def load_parts(run_dir: Path, settings: Mapping[str, Any], data_dir: Path | None) -> Split:
    """The data that a run was trained on, split as it was.

    Raises:
        RunError: these are other images or labels than it was trained on.
        DataError: they are missing or damaged.
    """
    data = settings["data"]
    parts = split(load(data["name"], data_dir), seed=data["split_seed"])
    if data.get("digest") not in (None, digest(parts)):
        raise other_data(run_dir, data["name"])
    return parts


def same_data(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two runs, by their settings, learned from the same split; old runs do not tell the images' digest."""
    one, other = a["data"], b["data"]
    told = one.keys() & other.keys() if {"digest"} == one.keys() ^ other.keys() else one.keys() | other.keys()
    return all(one.get(key) == other.get(key) for key in told)


def _as_recorded(run_dir: Path | None, model: Mapping[str, Any]) -> dict[str, Any]:
    """Without the defaults that the run in a folder does not tell, since an older version has written it."""
    if run_dir is None or not (run_dir / CONFIG).is_file():
        return dict(model)
    there = read_config(run_dir)["settings"].get("model")
    known = there.keys() if isinstance(there, dict) else model.keys()
    return {key: value for key, value in model.items() if key in known or value != _DEFAULTS.get(key)}


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
