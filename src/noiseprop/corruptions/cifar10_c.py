"""Reader for the released CIFAR-10-C: one `.npy` file per kind, with 10,000 test images at each of five severities."""

from pathlib import Path
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt
import torch

from noiseprop.corruptions.corrupt import KINDS, SEVERITIES, check_severity
from noiseprop.data.cifar10 import CIFAR10_CLASSES
from noiseprop.data.dataset import Dataset
from noiseprop.data.npy import map_npy
from noiseprop.errors import DataError, InputError

IMAGES_PER_SEVERITY = 10_000  # the official test set in its order


def read_cifar10_c(folder: Path, kind: str, *, severity: SupportsIndex) -> Dataset:
    """Read one kind and severity of the released CIFAR-10-C from `folder`/`kind`.npy and `folder`/labels.npy.

    The files are memory-mapped, so that only the requested rows of the 150 MB are read, and never unpickled.

    Args:
        folder: the unpacked CIFAR-10-C folder (https://zenodo.org/records/2535967).
        kind: one of KINDS.
        severity: 1 to 5.

    Returns:
        10,000 images, uint8 (10000, 3, 32, 32), in the official test set's order, named "cifar10-c/kind/severity".

    Raises:
        InputError: the kind or the severity is unknown.
        DataError: a file is missing, damaged, or of another dtype or shape.
    """
    if kind not in KINDS:
        raise InputError(f"read_cifar10_c: unknown kind {kind!r}; choose one of {', '.join(KINDS)}.")
    level = check_severity(severity, "read_cifar10_c")
    total = IMAGES_PER_SEVERITY * len(SEVERITIES)
    images = _map_uint8(folder / f"{kind}.npy", (total, 32, 32, 3))
    labels = _map_uint8(folder / "labels.npy", (total,))
    rows = slice((level - 1) * IMAGES_PER_SEVERITY, level * IMAGES_PER_SEVERITY)
    if int(labels[rows].max()) >= len(CIFAR10_CLASSES):
        raise DataError(f"{folder / 'labels.npy'}: holds the label {int(labels[rows].max())}, expected 0 to 9.")
    return Dataset(
        name=f"cifar10-c/{kind}/{level}",
        images=torch.from_numpy(np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2))),
        labels=torch.from_numpy(labels[rows].astype(np.int64)),
        classes=CIFAR10_CLASSES,
        source=f"{folder / kind}.npy, images {rows.start} to {rows.stop - 1}",
    )


def _map_uint8(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Map a uint8 `.npy` file of this shape, read-only."""
    try:
        array = map_npy(path, "r")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; unpack CIFAR-10-C.tar and pass its folder.") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable .npy file ({reason}); download CIFAR-10-C again.") from error
    if array.dtype != np.uint8 or array.shape != shape:
        found = f"{array.dtype} {array.shape}"
        raise DataError(f"{path}: holds {found}, expected uint8 {shape}; download CIFAR-10-C again.")
    return array
