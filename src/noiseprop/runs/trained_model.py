"""Runs by name: train a network of the paper or a user-defined one in a folder, and load it from there."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from noiseprop.data import Dataset, Split, digest, load, split
from noiseprop.errors import InputError, RunError
from noiseprop.models.config import PythonModelConfig, make_model
from noiseprop.models.registry import RegisteredModelConfig, get_architecture
from noiseprop.models.user_model import UserModelConfig, is_user_model
from noiseprop.noise.objectives import Objective
from noiseprop.training import Epoch, Recipe, load_model, read_config, train
from noiseprop.training.checkpoint import MODEL
from noiseprop.training.loop import EpochCallback, TrainingProgress
from noiseprop.training.resume import make_other_data_error
from noiseprop.training.run_config import DataConfig, RunSettings


def train_run(
    name: str,
    dataset: Dataset,
    recipe: Recipe,
    run_dir: Path | None,
    *,
    seed: int = 0,
    objective: Callable[[nn.Module], Objective] | None = None,
    resume: bool = False,
    progress: TrainingProgress | None = None,
    at_epoch_end: EpochCallback | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> tuple[nn.Module, list[Epoch]]:
    """Build a network and train it on the training part of a data set.

    Args:
        name: one of `NAMES`, or "package.module:function" of a user-defined network.
        dataset: all images; they are split here.
        recipe: settings of the training.
        run_dir: run folder, from which `load_run` reads the network; None writes nothing.
        seed: seed of the weights, the noise and the order of the images.
        objective: makes the objective of the noise for the network; None for the plain loss.
        resume: resume the run in `run_dir`, or start it there.
        progress: as for `train`.
        at_epoch_end: as for `train`.
        device: device of the training.
        options: further arguments of `build` or `make_user_model`.

    Returns:
        Trained network and its epochs.

    Raises:
        InputError: the network does not exist or does not take the images of the data set.
        RunError: as for `train`.
    """
    config = configure_model(name, dataset, seed=seed, **options)
    model = make_model(config).to(device)
    epochs = train(
        model,
        split(dataset),
        recipe,
        run_dir,
        seed=seed,
        objective=None if objective is None else objective(model),
        model_config=config,
        resume=resume,
        progress=progress,
        at_epoch_end=at_epoch_end,
    )
    return model, epochs


def configure_model(
    name: str, dataset: Dataset, *, seed: int = 0, **options: Any
) -> RegisteredModelConfig | UserModelConfig:
    """Return the record of a network for the images and classes of a data set.

    Raises:
        InputError: the network does not exist, does not take such images, or has no such option.
    """
    image, classes = tuple(dataset.images.shape[1:]), len(dataset.classes)
    if not is_user_model(name) and (expected := get_architecture(name).image) != image:
        raise InputError(
            f"{name} takes images of shape {expected}, those of {dataset.name} have {image}; choose another network"
        )
    try:
        if is_user_model(name):
            return msgspec.convert(
                {"kind": "user", "name": name, "image": image, "classes": classes, "seed": seed, **options},
                UserModelConfig,
            )
        return msgspec.convert(
            {"kind": "registry", "name": name, "classes": classes, "seed": seed, **options}, RegisteredModelConfig
        )
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: {error}") from error


def load_run(run_dir: Path, trusted: Collection[str] = ()) -> tuple[nn.Module, RunSettings]:
    """Return the network of a run after its last finished epoch, and the settings of the run.

    Args:
        run_dir: run folder, which may come from a stranger.
        trusted: user-defined networks, "package.module:function", whose code may run. Other code that config.json
            names is not imported.

    Raises:
        RunError: the folder is not a run, has no finished epoch or is damaged, or its network is not trusted.
    """
    settings = read_run_settings(run_dir)
    config = settings.model
    if isinstance(config, PythonModelConfig):
        raise RunError(f"{run_dir}: config.json does not name a network of the paper; load it from Python")
    if isinstance(config, UserModelConfig):
        check_trusted(run_dir, config.name, trusted)
        model = make_model(config)
    else:
        try:
            model = make_model(config)
        except InputError as error:
            raise RunError(f"{run_dir}: config.json does not name a network of the paper ({error})") from error
    load_model(model, run_dir / MODEL)
    return model, settings


def check_trusted(run_dir: Path, name: str, trusted: Collection[str]) -> None:
    """Check that the user allows the code of a network that a run folder names.

    Raises:
        RunError: the name is not among the trusted ones.
    """
    if name not in trusted:
        raise RunError(f"{run_dir} holds the network {name}, which is code; if you trust it, pass --model {name}")


def read_run_settings(run_dir: Path) -> RunSettings:
    """Return the settings of a run whose folder alone can make its network.

    Raises:
        RunError: the folder is not a run, config.json is damaged, or the network was an object in Python.
    """
    settings = read_config(run_dir).settings
    if isinstance(settings.model, PythonModelConfig):
        raise RunError(f"{run_dir}: config.json does not name a network of the paper; load it from Python")
    return settings


def load_run_data(run_dir: Path, settings: RunSettings, data_dir: Path | None, user_data: str | None = None) -> Split:
    """Return the data of a run, split as for its training.

    Args:
        run_dir: run folder, for error messages.
        settings: settings of the run.
        data_dir: folder of the official files, as for `load`.
        user_data: path of user data; None for their path at the time of the training.

    Raises:
        InputError: `user_data` is given, but the run was not trained on user data.
        RunError: the images or labels are not those of the training.
        DataError: the data are missing or damaged.
    """
    data = settings.data
    if user_data is not None and not data.path:
        raise InputError(f"{run_dir} was trained on {data.name}, not on user data; omit --data")
    dataset = replace(load(user_data or data.path or data.name, data_dir), name=data.name)
    parts = split(dataset, seed=data.split_seed)
    if data.digest != digest(parts):
        raise make_other_data_error(run_dir, data.name)
    return parts


def is_same_data(one: DataConfig, other: DataConfig) -> bool:
    """Return whether two runs learned from the same split, wherever its files are."""
    return msgspec.structs.replace(one, path="") == msgspec.structs.replace(other, path="")
