"""The data sets by name, and those of the user's own by their path."""

from collections.abc import Callable
from pathlib import Path

from noiseprop.data.cifar10 import cifar10
from noiseprop.data.class_folders import class_folders
from noiseprop.data.dataset import Dataset
from noiseprop.data.mnist import mnist
from noiseprop.data.mnist5k import mnist5k
from noiseprop.data.npz import npz
from noiseprop.data.tiny_imagenet import tiny_imagenet
from noiseprop.errors import DataError, InputError, near

_READERS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": mnist,
    "mnist-5k": lambda data_dir: mnist5k(),
    "cifar10": cifar10,
    "tiny-imagenet": tiny_imagenet,
}
NAMES = tuple(_READERS)
FORMS = {  # of the images (C, H, W), and the number of classes
    "mnist": ((1, 28, 28), 10),
    "mnist-5k": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "tiny-imagenet": ((3, 64, 64), 200),
}


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Read a data set: all its images with public labels, training and test (or validation) images pooled.

    Args:
        name: one of `NAMES`; or the path of a folder of class folders or of a .npz file of the user's own.
        data_dir: the folder that holds the official files; else $NOISEPROP_DATA, else they are downloaded once into
            the user's cache. "mnist-5k" and the user's own need neither.

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
    own = own_data(name)
    if own is None:
        return _READERS[name](data_dir)
    called, path = own
    if path.is_dir():
        return class_folders(path, called)
    if not path.is_file():  # nor a pipe, which would be waited for
        raise DataError(f"{path}: no such folder or file; name where the data lie with --data")
    return npz(path, called)


def own_data(name: str) -> tuple[str, Path] | None:
    """What data of the user's own are called, "flowers/" or "digits.npz", and their absolute path; None for `NAMES`.

    Raises:
        InputError: it is neither a known name nor like a path.
    """
    path = Path(name).expanduser()
    if name in _READERS:
        return None
    if name and (path.suffix == ".npz" or path.is_dir() or "/" in name):
        path = path.resolve()
        return (path.name if path.suffix == ".npz" else f"{path.name}/"), path
    known = ", ".join(NAMES)
    raise InputError(f"{name!r} is no data set; choose one of {known}, or a folder or .npz of yours{near(name, NAMES)}")
