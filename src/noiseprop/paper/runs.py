"""Runs of the paper's networks: what is trained by name can be loaded by its folder."""

from pathlib import Path
from typing import Any

from torch import nn

from noiseprop.data import Dataset, split
from noiseprop.errors import InputError, RunError
from noiseprop.paper.variants import architecture, build
from noiseprop.training import Epoch, Recipe, load_model, read_config, train
from noiseprop.training.checkpoint import MODEL
from noiseprop.training.loop import Progress


def train_run(
    name: str,
    dataset: Dataset,
    recipe: Recipe,
    run_dir: Path | None,
    *,
    seed: int = 0,
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
    classes = len(dataset.classes)
    model = build(name, seed=seed, classes=classes, **options)
    settings = {"name": name, "seed": seed, "classes": classes, **options}
    parts = split(dataset)
    epochs = train(
        model, parts, recipe, run_dir, seed=seed, settings={"model": settings}, resume=resume, progress=progress
    )
    return model, epochs


def load_run(run_dir: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run as its last finished epoch left it, and the run's settings.

    Raises:
        RunError: the folder is no run, has no finished epoch, or is damaged.
    """
    settings = read_config(run_dir)["settings"]
    try:
        model = build(**settings["model"])
    except (KeyError, TypeError, InputError) as error:
        raise RunError(f"{run_dir}: config.json does not name a network of the paper ({error})") from error
    load_model(model, run_dir / MODEL)
    return model, settings
