"""Random split into training, validation and test images, the same for every model and on every machine."""

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from noiseprop.data.dataset import Dataset
from noiseprop.errors import InputError

SPLIT_SEED = 2021
USER_DATA_RATIO = (4, 1, 1)
SPLIT_RATIOS = {"mnist": (5, 1, 1), "mnist-5k": (5, 1, 1), "cifar10": (4, 1, 1), "tiny-imagenet": (10, 1, 1)}


@dataclass(frozen=True, eq=False)
class Split:
    """Three parts of a data set with the seed and ratio of the split.

    Each part is in random order, so the first n images of `test` are a random sample of it.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    seed: int
    ratio: tuple[int, int, int]


def split(dataset: Dataset, seed: SupportsIndex = SPLIT_SEED) -> Split:
    """Split all images at random, 5:1:1 (MNIST), 4:1:1 (CIFAR-10, user data) or 10:1:1 (Tiny-ImageNet).

    User data that come split keep their parts, in random order; without validation images, 1 in 5 training images
    become validation images. The seed is independent of the seeds of models, so that all models share one test set.

    Args:
        dataset: a named data set or user data.
        seed: the split seed, at least 0.

    Returns:
        Three parts; validation and test get floor(N / sum(ratio)) images each, training the rest.

    Raises:
        InputError: no ratio is known for the data set's name, the seed is not a whole number of at least 0, or a part
            would be empty.

    Source:
        Section 4.1 of the paper (random split of all images of a data set).

    Examples:
        >>> images = torch.zeros(70, 1, 28, 28, dtype=torch.uint8)
        >>> digits = Dataset("mnist", images, torch.arange(70) % 10, tuple("0123456789"))
        >>> parts = split(digits)
        >>> len(parts.train), len(parts.validation), len(parts.test), parts.seed
        (50, 10, 10, 2021)
    """
    seed = _check_split_seed(seed)
    if dataset.parts is not None:
        return _split_as_given(dataset, dataset.parts, seed)
    if dataset.name not in SPLIT_RATIOS and not dataset.path:
        raise InputError(
            f"no split ratio is known for {dataset.name!r}; name the data set one of {', '.join(SPLIT_RATIOS)}"
        )
    ratio = USER_DATA_RATIO if dataset.path else SPLIT_RATIOS[dataset.name]
    held_out = len(dataset) // sum(ratio)
    if not held_out:
        raise InputError(
            f"{dataset.name}: {len(dataset)} images are too few to split {ratio}; give at least {sum(ratio)}"
        )
    train = len(dataset) - 2 * held_out
    order = None if dataset.split_seed == seed else torch.from_numpy(draw_permutation(len(dataset), seed))
    parts: list[Dataset] = []
    for part in (slice(train), slice(train, train + held_out), slice(train + held_out, None)):
        parts.append(dataset[part] if order is None else dataset[order[part]])
    return Split(*parts, seed=seed, ratio=ratio)


def _split_as_given(dataset: Dataset, sizes: tuple[int, int, int], seed: int) -> Split:
    """Return the given parts, each in random order."""
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        parts.append(start + torch.from_numpy(draw_permutation(size, seed)))
        start += size
    if not sizes[1]:
        held_out = sizes[0] // (USER_DATA_RATIO[0] + USER_DATA_RATIO[1])
        parts[:2] = parts[0][held_out:], parts[0][:held_out]
    if not all(map(len, parts)):
        raise InputError(
            f"{dataset.name}: {sizes[0]} training and {sizes[2]} test images are too few; give at least 5 and 1"
        )
    train, validation, test = (dataset[rows] for rows in parts)
    return Split(train, validation, test, seed=seed, ratio=sizes)


def draw_permutation(count: int, seed: SupportsIndex) -> np.ndarray:
    """Return a random permutation, the sorting order of PCG64's first `count` 64-bit numbers.

    NumPy guarantees that the raw numbers of a bit generator never change, but not `Generator.permutation`.

    Returns:
        int64, (count,).

    Raises:
        InputError: the seed is not a whole number of at least 0.

    Examples:
        >>> draw_permutation(5, seed=7)
        array([3, 4, 0, 2, 1])
    """
    bits = np.random.PCG64(_check_split_seed(seed)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)


def _check_split_seed(seed: SupportsIndex) -> int:
    """Return a split seed as an int; NumPy's integers are accepted."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"the split seed is {seed!r}, expected a whole number of at least 0")
    return number
