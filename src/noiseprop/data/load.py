"""The data sets by name."""

from collections.abc import Callable
from pathlib import Path

from noiseprop.data.cifar10 import cifar10
from noiseprop.data.dataset import Dataset
from noiseprop.data.mnist import mnist
from noiseprop.data.mnist5k import mnist5k
from noiseprop.data.tiny_imagenet import tiny_imagenet
from noiseprop.errors import InputError

_READERS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": mnist,
    "mnist-5k": lambda data_dir: mnist5k(),
    "cifar10": cifar10,
    "tiny-imagenet": tiny_imagenet,
}
NAMES = tuple(_READERS)


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Read a data set: all its images with public labels, training and test (or validation) images pooled.

    Args:
        name: one of `NAMES`.
        data_dir: the folder that holds the official files; else $NOISEPROP_DATA, else they are downloaded once into
            the user's cache. "mnist-5k" needs neither.

    Returns:
        The images in a fixed order.

    Raises:
        InputError: the name is unknown.
        DataError: a file is missing, damaged or not what its name says.

    Examples:
        >>> digits = load("mnist-5k")
        >>> tuple(digits.images.shape), digits.labels.bincount().tolist()
        ((5000, 1, 28, 28), [500, 500, 500, 500, 500, 500, 500, 500, 500, 500])
    """
    if name not in _READERS:
        raise InputError(f"{name!r} is no data set; choose one of {', '.join(NAMES)}")
    return _READERS[name](data_dir)
