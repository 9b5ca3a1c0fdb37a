"""One random split into training, validation and test images, the same for every model and on every machine."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noiseprop.data.dataset import Dataset
from noiseprop.errors import InputError

SPLIT_SEED = 2021
OWN_RATIO = (4, 1, 1)  # of images of the user's own
RATIOS = {"mnist": (5, 1, 1), "mnist-5k": (5, 1, 1), "cifar10": (4, 1, 1), "tiny-imagenet": (10, 1, 1)}


@dataclass(frozen=True, eq=False)
class Split:
    """The three parts of a data set, and how they were drawn.

    Each part's images lie in random order, so the first n of `test` are a random sample of it.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    seed: int
    ratio: tuple[int, int, int]


def split(dataset: Dataset, seed: int = SPLIT_SEED) -> Split:
    """Split all images at random, 5:1:1 (MNIST), 4:1:1 (CIFAR-10, one's own) or 10:1:1 (Tiny-ImageNet).

    One's own that are split already stay so, but for the order within the parts; where they have no validation images,
    1 in 5 training images are taken for that. The seed is the split's own and has nothing to do with the seeds of
    models, so that all models share one test set.

    Args:
        dataset: a data set whose `name` is in `RATIOS`, or one of the user's own.
        seed: the split seed, at least 0.

    Returns:
        The parts; validation and test get floor(N / sum(ratio)) images each, training the rest.

    Raises:
        InputError: no ratio is known for the data set's name, the seed is negative, or a part would be empty.

    Source:
        Section 4.1 of the paper (random split of all images of a data set).

    Examples:
        >>> images = torch.zeros(70, 1, 28, 28, dtype=torch.uint8)
        >>> digits = Dataset("mnist", images, torch.arange(70) % 10, tuple("0123456789"))
        >>> parts = split(digits)
        >>> len(parts.train), len(parts.validation), len(parts.test), parts.seed
        (50, 10, 10, 2021)
    """
    if dataset.parts is not None:
        return _split_as_given(dataset, dataset.parts, seed)
    if dataset.name not in RATIOS and not dataset.path:
        raise InputError(f"no split is known for {dataset.name!r}; name the data set one of {', '.join(RATIOS)}")
    ratio = OWN_RATIO if dataset.path else RATIOS[dataset.name]
    held_out = len(dataset) // sum(ratio)
    if not held_out:
        raise InputError(
            f"{dataset.name}: {len(dataset)} images are too few to split {ratio}; give at least {sum(ratio)}"
        )
    train = len(dataset) - 2 * held_out
    order = None if dataset.split_seed == seed else torch.from_numpy(permutation(len(dataset), seed))
    parts: list[Dataset] = []
    for part in (slice(train), slice(train, train + held_out), slice(train + held_out, None)):
        parts.append(dataset[part] if order is None else dataset[order[part]])
    return Split(*parts, seed=seed, ratio=ratio)


def _split_as_given(dataset: Dataset, sizes: tuple[int, int, int], seed: int) -> Split:
    """The parts that the data set lies in, each in random order."""
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        parts.append(start + torch.from_numpy(permutation(size, seed)))
        start += size
    if not sizes[1]:
        held_out = sizes[0] // (OWN_RATIO[0] + OWN_RATIO[1])
        parts[:2] = parts[0][held_out:], parts[0][:held_out]
    if not all(map(len, parts)):
        raise InputError(
            f"{dataset.name}: {sizes[0]} training and {sizes[2]} test images are too few; give at least 5 and 1"
        )
    train, validation, test = (dataset[rows] for rows in parts)
    return Split(train, validation, test, seed=seed, ratio=sizes)


def permutation(count: int, seed: int) -> np.ndarray:
    """A random order of `count` things: the sorting order of PCG64's first `count` 64-bit numbers.

    NumPy promises that the raw numbers of a bit generator never change, and does not promise it of
    `Generator.permutation`; hence the sort.

    Returns:
        int64, (count,).

    Raises:
        InputError: the seed is negative.

    Examples:
        >>> permutation(5, seed=7)
        array([3, 4, 0, 2, 1])
    """
    if seed < 0:
        raise InputError(f"the split seed is {seed}; give one that is at least 0")
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)
