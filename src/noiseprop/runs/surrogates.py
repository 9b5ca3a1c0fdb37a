"""The black-box surrogates: one noise-free network per data set, trained once and kept by its configuration."""

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
from noiseprop.runs.trained_model import train_run
from noiseprop.models.registry import SURROGATES, build
from noiseprop.training import TABLE_1, Recipe, load_model, read_config
from noiseprop.training.checkpoint import MODEL
from noiseprop.training.resume import flattened
from noiseprop.training.loop import Progress


def surrogate(
    dataset: Dataset,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """The network on which a data set's transfer attacks are crafted, trained at the first call and read afterwards.

    MNIST's has the layers 784-300-150-10 with ReLU, CIFAR-10's and Tiny-ImageNet's are the plain ResNets with a single
    Linear head. It learns from the training part of the split that all models share. The run lies in a folder of
    `cache` whose name tells data set, network and a digest of everything that decides the training, so that another
    recipe or seed never finds it. Processes that ask for it at once wait for the one that trains; one that was killed
    is gone on with.

    Args:
        dataset: all images of a data set; they are split here.
        recipe: how to train; Table 1's where None.
        seed: of the weights and of the order of the images.
        cache: folder of the surrogates; noiseprop's folder in the user's cache where None.
        device: where to train, and where the network is in the end.
        progress: as for `train`, if there is anything to train.

    Returns:
        The trained network, in eval mode.

    Raises:
        InputError: the paper has no surrogate for the data set.
        RunError: the folder cannot be written, or what it holds is damaged or learned from other images.

    Source: section 4 of Xiao, Zhang and Peng (2021).
    """
    name = SURROGATES.get(dataset.name.removesuffix("-5k"))
    if name is None:
        known = ", ".join(SURROGATES)
        raise InputError(f"surrogate: the paper has none for {dataset.name!r}; name the data set one of {known}")
    recipe = recipe or TABLE_1[dataset.name]
    root = cache if cache is not None else find_cache_root() / "surrogates"
    folder = root / f"{dataset.name}-{name}-{_digest(dataset, name, recipe, seed)}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        net = build(name, seed=seed, classes=len(dataset.classes)).to(device)
        if not _is_trained(net, folder, dataset, recipe.epochs):
            net, _ = train_run(name, dataset, recipe, folder, seed=seed, resume=True, progress=progress, device=device)
    return net.eval()


def _is_trained(net: nn.Module, folder: Path, dataset: Dataset, epochs: int) -> bool:
    """Fill a network from its folder, unless it is missing there, damaged, not trained to the end, or of other data."""
    try:
        learned_from = flattened(read_config(folder)["settings"]).get("data.digest")
        return load_model(net, folder / MODEL) >= epochs and learned_from == digest(split(dataset))
    except RunError:
        return False  # the checkpoint may have it still


def _digest(dataset: Dataset, name: str, recipe: Recipe, seed: int) -> str:
    """Twelve hex digits of the configuration."""
    data = {"name": dataset.name, "images": len(dataset), "split_seed": SPLIT_SEED}
    configuration = {"model": name, "data": data, "recipe": asdict(recipe), "seed": seed}
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:12]
