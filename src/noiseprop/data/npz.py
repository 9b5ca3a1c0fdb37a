"""Images of the user's own in a .npz file: arrays x and y, or x_train, y_train, x_test and y_test; never pickles."""

from pathlib import Path

import numpy as np
import torch

from noiseprop.data.class_folders import MOST_BYTES, MOST_CLASSES, MOST_SIDE, PARTS
from noiseprop.data.dataset import Dataset
from noiseprop.data.npy import MOST_HEADER, parse_array
from noiseprop.data.zip_archive import Archive, open_archive
from noiseprop.errors import DataError


def npz(path: Path, name: str) -> Dataset:
    """Read images x, uint8 (N, H, W) or (N, H, W, C) with 1 or 3 channels, and labels y, whole numbers (N,) from 0.

    A file that is split already holds x_train, y_train, x_test, y_test and perhaps x_val, y_val, as Keras's do.

    Args:
        path: the file, as `numpy.savez` or `numpy.savez_compressed` writes it.
        name: what the data set is called.

    Raises:
        DataError: it is no such file, damaged, too large, or its arrays are not of these forms.
    """
    try:
        with open_archive(path) as archive:
            split = "x_train.npy" in archive.members
            there = [f"_{part}" for part in PARTS if f"x_{part}.npy" in archive.members] if split else [""]
            pairs = {ending: _pair(archive, f"x{ending}", f"y{ending}") for ending in there}
    except DataError as error:
        raise DataError(f"{str(error).partition('; ')[0]}; write x and y with numpy.savez") from error
    shapes = {images.shape[1:] for images, _ in pairs.values()}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: its parts have images of {' and '.join(map(str, sorted(shapes)))}; give them one shape"
        )
    if split and len(pairs) == 1:
        raise DataError(f"{path}: has x_train but neither x_val nor x_test; add one, or name the array x")
    images = np.concatenate([images for images, _ in pairs.values()])
    labels = np.concatenate([labels for _, labels in pairs.values()])
    classes = int(labels.max()) + 1
    sizes = {ending: len(part) for ending, (_, part) in pairs.items()}
    train, held_out = sizes.get("_train", 0), sizes.get("_val", 0)
    parts = (train, held_out, sizes["_test"]) if "_test" in sizes else (train, 0, held_out)
    return Dataset(
        name=name,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        classes=tuple(map(str, range(max(classes, 2)))),
        source=f"{path}: {len(labels):,} images of {images.shape[2]}x{images.shape[3]} pixels in {classes} classes",
        path=str(path),
        parts=parts if split else None,
    )


def _pair(archive: Archive, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,)."""
    images, labels = _array(archive, x, MOST_BYTES), _array(archive, y, MOST_BYTES // 8)
    where = archive.path
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(f"{where}: {x} is {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, C)")
    images = images[..., None] if images.ndim == 3 else images
    count, height, width, channels = images.shape
    if channels not in (1, 3) or not 0 < min(height, width) <= max(height, width) <= MOST_SIDE:
        raise DataError(
            f"{where}: {x} has images of shape {images.shape[1:]}, expected (H, W, 1 or 3), {MOST_SIDE} a side at most"
        )
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(f"{where}: {y} is {labels.dtype} {labels.shape}, expected whole numbers ({count},)")
    if not count:
        raise DataError(f"{where}: {x} holds no images")
    if not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        raise DataError(
            f"{where}: {y} runs from {labels.min()} to {labels.max()}, expected labels from 0 to below {MOST_CLASSES:,}"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64)


def _array(archive: Archive, name: str, most: int) -> np.ndarray:
    """One array; what its header says is compared with what is there, and objects are refused."""
    raw = archive.read(f"{name}.npy", most + MOST_HEADER)
    try:
        return parse_array(raw)
    except ValueError as error:
        raise DataError(f"{archive.path}: {name} is no sound array ({error})") from error
