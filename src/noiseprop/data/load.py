"""Data sets by name, and user data by their path."""

from collections.abc import Callable
from pathlib import Path

from noiseprop.data.cifar10 import read_cifar10
from noiseprop.data.class_folders import read_class_folders
from noiseprop.data.dataset import Dataset
from noiseprop.data.mnist import read_mnist
from noiseprop.data.mnist5k import read_mnist5k
from noiseprop.data.npz import read_npz
from noiseprop.data.tiny_imagenet import read_tiny_imagenet
from noiseprop.errors import DataError, InputError, suggest_name
from noiseprop.files.untrusted import has_control_characters

_READERS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": read_mnist,
    "mnist-5k": lambda data_dir: read_mnist5k(),
    "cifar10": read_cifar10,
    "tiny-imagenet": read_tiny_imagenet,
}
NAMES = tuple(_READERS)
IMAGE_FORMS = {  # shape of the images (C, H, W), number of classes
    "mnist": ((1, 28, 28), 10),
    "mnist-5k": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "tiny-imagenet": ((3, 64, 64), 200),
}


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Read a data set: all its images with public labels, training and test (or validation) images pooled.

    Args:
        name: one of `NAMES`; or the path of user data, a folder of class folders or a .npz file.
        data_dir: folder that holds the official files; by default $NOISEPROP_DATA, otherwise they are downloaded
            once into the user's cache. "mnist-5k" and user data need neither.

    Returns:
        The images in a fixed order.

    Raises:
        InputError: the name is unknown.
        DataError: a file is missing, damaged or different from its name.

    Examples:
        >>> digits = load("mnist-5k")
        >>> tuple(digits.images.shape), digits.labels.bincount().tolist()
        ((5000, 1, 28, 28), [500, 500, 500, 500, 500, 500, 500, 500, 500, 500])
    """
    user_data = resolve_user_data(name)
    if user_data is None:
        return _READERS[name](data_dir)
    short_name, path = user_data
    if path.is_dir():
        return read_class_folders(path, short_name)
    if not path.is_file():  # a pipe would block
        raise DataError(f"{path}: no such folder or file; set --data to the path of the data")
    return read_npz(path, short_name)


def resolve_user_data(name: str) -> tuple[str, Path] | None:
    """Return the short name of user data, "flowers/" or "digits.npz", and their absolute path; None for `NAMES`.

    Raises:
        InputError: the name is neither known nor a path, or the path has control characters or is not UTF-8, so that
            the record of a run could not hold it.
    """
    path = Path(name).expanduser()
    if name in _READERS:
        return None
    if name and (path.suffix == ".npz" or path.is_dir() or "/" in name):
        path = path.resolve()
        if has_control_characters(str(path)):
            raise InputError(f"data path {str(path)!r} has control characters or bytes that are not UTF-8; rename it")
        return (path.name if path.suffix == ".npz" else f"{path.name}/"), path
    known = ", ".join(NAMES)
    raise InputError(
        f"{name!r} is not a data set; choose one of {known}, or a folder or .npz of yours{suggest_name(name, NAMES)}"
    )
