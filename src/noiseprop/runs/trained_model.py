"""Runs by name: a network of the paper, or one of the user's own, that was trained can be loaded by its folder."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noiseprop.data import Dataset, Split, digest, load, split
from noiseprop.errors import InputError, RunError
from noiseprop.models.user_model import is_own, own_network
from noiseprop.noise.objectives import Objective
from noiseprop.models.registry import architecture, build
from noiseprop.training import Epoch, Recipe, load_model, read_config, train
from noiseprop.training.checkpoint import MODEL
from noiseprop.training.resume import other_data
from noiseprop.training.loop import EpochEnd, Progress
from noiseprop.training.run_folder import CONFIG

_DEFAULTS: dict[str, Any] = {
    name: option.default for name, option in signature(build).parameters.items() if name != "name"
}
OWN_DEFAULTS: dict[str, Any] = {
    name: list(option.default) if name == "noise" else option.default
    for name, option in signature(own_network).parameters.items()
    if name not in ("name", "image", "classes")
}
"""What decides a network of the user's own besides its function: its options and their defaults."""
_TYPES: dict[str, tuple[type, ...]] = {  # of the same in config.json
    **{name: (type(default),) for name, default in {**_DEFAULTS, **OWN_DEFAULTS}.items()},
    "classes": (int, type(None)),
    "init": (int, float, str),
    "image": (list,),
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
    at_epoch_end: EpochEnd | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> tuple[nn.Module, list[Epoch]]:
    """Build a network and train it on a data set's training part.

    Args:
        name: one of `NAMES`, or "package.module:function" for one of the user's own.
        dataset: all images; they are split here.
        recipe: how to train.
        run_dir: where to keep the run, from which `load_run` reads it; None keeps nothing.
        seed: of the weights, the noise and the order of the images.
        objective: makes the noise's objective for the network; the plain loss if None.
        resume: continue the run in `run_dir`, or start it there.
        progress: as for `train`.
        at_epoch_end: as for `train`.
        device: where to train.
        options: more keyword arguments of `build`, or of `own_network`.

    Returns:
        The trained network and its epochs.

    Raises:
        InputError: the network does not exist or does not take the data set's images.
        RunError: see `train`.
    """
    chosen: dict[str, Any] = {**defaults(name), **options, "seed": seed, "classes": len(dataset.classes)}
    has = tuple(dataset.images.shape[1:])
    if is_own(name):
        chosen["image"] = list(has)
    elif (takes := architecture(name).image) != has:
        raise InputError(
            f"{name} takes images of shape {takes}, those of {dataset.name} have {has}; choose another one"
        )
    model = _make({"name": name, **chosen}).to(device)
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
        at_epoch_end=at_epoch_end,
    )
    return model, epochs


def defaults(name: str) -> dict[str, Any]:
    """The options that decide a network besides its name, with their defaults."""
    return OWN_DEFAULTS if is_own(name) else _DEFAULTS


def load_run(run_dir: Path, trusted: Collection[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run as its last finished epoch left it, and the run's settings.

    Args:
        run_dir: the run's folder, which may come from a stranger.
        trusted: the user's own networks, "package.module:function", whose code may be run; what config.json names and
            is not among them is not imported.

    Raises:
        RunError: the folder is no run, has no finished epoch, or is damaged; or its network is not trusted.
    """
    settings = read_settings(run_dir)
    name = settings["model"]["name"]
    if is_own(name):
        refuse_untrusted(run_dir, name, trusted)
        model = _make(settings["model"])
    else:
        try:
            model = _make(settings["model"])
        except (TypeError, ValueError) as error:
            raise RunError(f"{run_dir}: config.json does not name a network of the paper ({error})") from error
    load_model(model, run_dir / MODEL)
    return model, settings


def refuse_untrusted(run_dir: Path, name: str, trusted: Collection[str]) -> None:
    """Refuse to import a network of a user's own because a run's folder says so.

    Raises:
        RunError: the name is not among the trusted ones.
    """
    if name not in trusted:
        raise RunError(
            f"{run_dir} is of the network {name}, which is code; to run it, give --model {name} if you trust it"
        )


def _make(model: Mapping[str, Any]) -> nn.Module:
    return own_network(**model) if is_own(model["name"]) else build(**model)


def read_settings(run_dir: Path) -> dict[str, Any]:
    """The settings of a run of a network by name: "model" (complete), "data", "recipe", "seed", ...

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
    objective = settings.get("objective", {})
    if not isinstance(objective, dict):
        raise RunError(f"{run_dir}: config.json has the objective {objective!r}; train the run again elsewhere")
    for option, value in (*model.items(), ("path", data.get("path", ""))):
        if not _fits(option, value):
            raise RunError(f"{run_dir}: config.json has {option} {value!r}; train the run again elsewhere")
    whole_model = {**defaults(model["name"]), **model}
    if is_own(model["name"]) and whole_model.keys() != {"name", "image", "classes", *OWN_DEFAULTS}:
        raise RunError(f"{run_dir}: config.json does not tell all of {model['name']}; train the run again elsewhere")
    return {**settings, "model": whole_model}


def _fits(option: str, value: object) -> bool:
    """Whether an option of a network, or the data's path, is of its type in config.json."""
    if option == "path":
        return isinstance(value, str) and "\0" not in value
    if option in _TYPES and type(value) not in _TYPES[option]:
        return False
    inside = {"image": int, "noise": str}.get(option)
    return inside is None or (isinstance(value, list) and all(type(item) is inside for item in value))


def load_parts(run_dir: Path, settings: Mapping[str, Any], data_dir: Path | None, own_data: str | None = None) -> Split:
    """The data that a run was trained on, split as it was.

    Args:
        run_dir: the run's folder, for errors.
        settings: of the run.
        data_dir: folder of the official files, as for `load`.
        own_data: where data of the user's own lie; where they lay at the training if None.

    Raises:
        InputError: the run's data are not the user's own, but `own_data` is given.
        RunError: these are other images or labels than it was trained on.
        DataError: they are missing or damaged.
    """
    data = settings["data"]
    path = data.get("path")
    if own_data is not None and not path:
        raise InputError(f"{run_dir} was trained on {data['name']}, not on data of your own; leave --data out")
    dataset = replace(load(own_data or path or data["name"], data_dir), name=data["name"])
    parts = split(dataset, seed=data["split_seed"])
    if data.get("digest") not in (None, digest(parts)):
        raise other_data(run_dir, data["name"])
    return parts


def same_data(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two runs, by their settings, learned from the same split; old runs do not tell the images' digest."""
    one, other = a["data"], b["data"]
    one, other = ({key: value for key, value in data.items() if key != "path"} for data in (one, other))
    told = one.keys() & other.keys() if {"digest"} == one.keys() ^ other.keys() else one.keys() | other.keys()
    return all(one.get(key) == other.get(key) for key in told)


def _as_recorded(run_dir: Path | None, model: Mapping[str, Any]) -> dict[str, Any]:
    """Without the defaults that the run in a folder does not tell, since an older version has written it."""
    if run_dir is None or not (run_dir / CONFIG).is_file():
        return dict(model)
    there = read_config(run_dir)["settings"].get("model")
    known = there.keys() if isinstance(there, dict) else model.keys()
    return {key: value for key, value in model.items() if key in known or value != defaults(model["name"]).get(key)}


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
