"""Black-box surrogates: one noise-free network per data set, trained once and cached by its configuration."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from noiseprop.data import Dataset, digest, split
from noiseprop.data.download import find_cache_root
from noiseprop.data.split import SPLIT_SEED
from noiseprop.errors import InputError, RunError
from noiseprop.models.registry import SURROGATES, build
from noiseprop.runs.trained_model import train_run
from noiseprop.training import TABLE_1, Recipe, load_model, read_config
from noiseprop.training.checkpoint import MODEL
from noiseprop.training.loop import TrainingProgress
from noiseprop.training.run_config import RUN_VERSION


def load_surrogate(
    dataset: Dataset,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: TrainingProgress | None = None,
) -> nn.Module:
    """Return the network on which transfer attacks are crafted, trained at the first call and read afterwards.

    For MNIST it has the layers 784-300-150-10 with ReLU; for CIFAR-10 and Tiny-ImageNet it is the plain ResNet with a
    single Linear head. It learns from the training part of the common split. The name of its run folder has the data
    set, the network and a digest of everything that decides the training, so that each recipe and seed has its own.
    Concurrent processes wait for the one that trains; an interrupted training is resumed.

    Args:
        dataset: all images of a data set; they are split here.
        recipe: settings of the training; None for Table 1.
        seed: seed of the weights and of the order of the images.
        cache: folder of the surrogates; None for the folder of noiseprop in the user's cache.
        device: device of the training and of the result.
        progress: as for `train`; not called if nothing is left to train.

    Returns:
        Trained network, in eval mode.

    Raises:
        InputError: the paper has no surrogate for the data set.
        RunError: the folder cannot be written, is damaged, or holds a network trained on other images.

    Source: section 4 of Xiao, Zhang and Peng (2021).
    """
    name = SURROGATES.get(dataset.name.removesuffix("-5k"))
    if name is None:
        known = ", ".join(SURROGATES)
        raise InputError(f"the paper has no surrogate for {dataset.name!r}; name the data set one of {known}")
    recipe = recipe or TABLE_1[dataset.name]
    root = cache if cache is not None else find_cache_root() / "surrogates"
    folder = root / f"{dataset.name}-{name}-{_hash_configuration(dataset, name, recipe, seed)}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        net = build(name, seed=seed, classes=len(dataset.classes)).to(device)
        if not _is_trained(net, folder, dataset, recipe.epochs):
            net, _ = train_run(name, dataset, recipe, folder, seed=seed, resume=True, progress=progress, device=device)
    return net.eval()


def _is_trained(net: nn.Module, folder: Path, dataset: Dataset, epochs: int) -> bool:
    """Fill a network from its folder; return False if it is missing, damaged, unfinished or trained on other data."""
    try:
        data = read_config(folder).settings.data
        return load_model(net, folder / MODEL) >= epochs and data.digest == digest(split(dataset))
    except RunError:
        return False  # the checkpoint may still have it


def _hash_configuration(dataset: Dataset, name: str, recipe: Recipe, seed: int) -> str:
    """Return twelve hex digits that identify a configuration."""
    data = {"name": dataset.name, "images": len(dataset), "split_seed": SPLIT_SEED}
    configuration = {"format": RUN_VERSION, "model": name, "data": data, "recipe": asdict(recipe), "seed": seed}
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:12]
