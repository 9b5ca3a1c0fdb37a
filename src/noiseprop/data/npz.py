"""User images in a .npz file: arrays x and y, or x_train, y_train, x_test and y_test; never pickles."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from noiseprop.data.archives import ZipArchive, open_zip
from noiseprop.data.class_folders import MAX_DATA_CLASSES, SPLIT_PARTS
from noiseprop.data.dataset import Dataset
from noiseprop.data.image_files import MAX_DECODED_BYTES, MAX_SIDE
from noiseprop.data.npy import MAX_NPY_HEADER, parse_npy
from noiseprop.errors import DataError, NoisepropWarning

_ADVICE = "write x and y with numpy.savez"


def read_npz(path: Path, name: str) -> Dataset:
    """Read images x, uint8 (N, H, W) or (N, H, W, C) with 1 or 3 channels, and labels y, whole numbers (N,) from 0.

    A file that comes split holds x_train, y_train, x_test, y_test and optionally x_val, y_val, as those of Keras do.

    Args:
        path: file as `numpy.savez` or `numpy.savez_compressed` writes it.
        name: name of the data set.

    Raises:
        DataError: the file is not a .npz file, damaged or too large, or its arrays have other forms; the message says
            how to convert them.

    Warns:
        NoisepropWarning: classes between 0 and the largest label have no training images.
    """
    with open_zip(path, advice=_ADVICE) as archive:
        is_split = "x_train.npy" in archive.members
        endings = [f"_{part}" for part in SPLIT_PARTS if f"x_{part}.npy" in archive.members] if is_split else [""]
        pairs = {ending: _read_arrays(archive, f"x{ending}", f"y{ending}") for ending in endings}
    shapes = {images.shape[1:] for images, _ in pairs.values()}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: its parts have images of {' and '.join(map(str, sorted(shapes)))}; give them one shape"
        )
    if is_split and len(pairs) == 1:
        raise DataError(f"{path}: has x_train but neither x_val nor x_test; add one, or name the array x")
    images = np.concatenate([images for images, _ in pairs.values()])
    labels = np.concatenate([labels for _, labels in pairs.values()])
    classes = max(int(labels.max()) + 1, 2)
    _warn_of_empty_classes(pairs[endings[0]][1], classes, path)
    sizes = {ending: len(part) for ending, (_, part) in pairs.items()}
    train, held_out = sizes.get("_train", 0), sizes.get("_val", 0)
    parts = (train, held_out, sizes["_test"]) if "_test" in sizes else (train, 0, held_out)
    return Dataset(
        name=name,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        classes=tuple(map(str, range(classes))),
        source=f"{path}: {len(labels):,} images of {images.shape[2]}x{images.shape[3]} pixels in {classes} classes",
        path=str(path),
        parts=parts if is_split else None,
    )


def _read_arrays(archive: ZipArchive, x: str, y: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read images, uint8 (N, C, H, W), and labels, int64 (N,)."""
    images = _check_images(_read_array(archive, x, MAX_DECODED_BYTES), x, archive.path)
    labels = _check_labels(_read_array(archive, y, MAX_DECODED_BYTES // 8), y, len(images), archive.path)
    return images, labels


def _check_images(images: npt.NDArray[np.generic], x: str, path: Path) -> npt.NDArray[np.uint8]:
    """Return images as (N, C, H, W)."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: {x} is {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, C); "
            + (_suggest_pixels(images, x) if images.ndim in (3, 4) else f"reshape {x} to images")
        )
    images = images[..., None] if images.ndim == 3 else images
    count, height, width, channels = images.shape
    if channels not in (1, 3) or not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise DataError(
            f"{path}: {x} has images of shape {images.shape[1:]}, expected (H, W, 1 or 3), at most {MAX_SIDE} per "
            f"side; {_suggest_channels(images.shape, x)}"
        )
    if not count:
        raise DataError(f"{path}: {x} holds no images; add some")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.uint8)


def _suggest_pixels(images: npt.NDArray[np.generic], x: str) -> str:
    """Suggest a conversion of pixels to uint8 by their type and range."""
    if images.dtype.kind == "b":
        return f"multiply by 255: {x} * np.uint8(255)"
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        return f"{x} holds NaN or infinity; replace them and scale the pixels to 0 to 255"
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"multiply by 255: ({x} * 255).round().astype(np.uint8)"
    if images.dtype.kind == "f" and low >= -1 and high <= 1:
        return f"map [-1, 1] to 0 to 255: (({x} + 1) * 127.5).round().astype(np.uint8)"
    if low >= 0 and high <= 255:
        return f"convert it: {x}.round().astype(np.uint8)"
    return f"its pixels run from {low:g} to {high:g}; scale them to 0 to 255, then use .round().astype(np.uint8)"


def _suggest_channels(shape: tuple[int, ...], x: str) -> str:
    """Suggest a conversion of the shape of images (N, H, W, C)."""
    if shape[1] in (1, 3) and shape[3] not in (1, 3):
        return f"move the channel axis to the end: np.moveaxis({x}, 1, -1)"
    if shape[3] == 4:
        return f"drop the alpha channel: {x}[..., :3]"
    return "write grey or RGB images of that size"


def _check_labels(labels: npt.NDArray[np.generic], y: str, count: int, path: Path) -> npt.NDArray[np.int64]:
    """Return labels as int64 (N,)."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        if labels.ndim == 2 and len(labels) == count:
            advice = f"turn one-hot rows into labels: {y}.argmax(1)"
        elif labels.shape == (count,):
            advice = f"convert whole numbers: {y}.astype(np.int64)"
        else:
            advice = "give one label per image"
        raise DataError(f"{path}: {y} is {labels.dtype} {labels.shape}, expected whole numbers ({count},); {advice}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < MAX_DATA_CLASSES:
        raise DataError(
            f"{path}: {y} runs from {labels.min()} to {labels.max()}, expected labels from 0 to below "
            f"{MAX_DATA_CLASSES:,}; number the classes: np.unique({y}, return_inverse=True)[1]"
        )
    return labels.astype(np.int64)


def _warn_of_empty_classes(labels: npt.NDArray[np.int64], classes: int, path: Path) -> None:
    """Warn of labels that do not start at 0 or have gaps."""
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(empty):
        listed = ", ".join(map(str, empty[:5])) + ", ..." * (len(empty) > 5)
        warnings.warn(
            f"{path}: labels run from {labels.min()} to {labels.max()}, but {len(empty)} of the {classes} classes from "
            f"0 have no training images ({listed}); number the classes from 0 without gaps if that is not intended",
            NoisepropWarning,
            stacklevel=3,
        )


def _read_array(archive: ZipArchive, name: str, limit: int) -> npt.NDArray[np.generic]:
    """Read one array; its header must match its size, and pickled objects raise an error."""
    raw = archive.read(f"{name}.npy", limit + MAX_NPY_HEADER)
    try:
        return parse_npy(raw)
    except ValueError as error:
        advice = (
            f"write one array of numbers, for example np.stack(list({name}))"
            if name.startswith("x")
            else f"write whole numbers, for example np.unique({name}, return_inverse=True)[1]"
        )
        raise DataError(f"{archive.path}: {name} is not a valid array ({error}); {advice}") from error
