"""Images of the user's own: one folder per class, by themselves or inside train, val and test."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from noiseprop.data.dataset import Dataset
from noiseprop.errors import DataError
from noiseprop.files.bounded import read_bounded
from noiseprop.progress import told

FORMATS = ("JPEG", "PNG", "BMP", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm")
PARTS = ("train", "val", "test")
MOST_FILE = 32_000_000  # bytes of an image's file
MOST_SIDE = 1024  # pixels
MOST_BYTES = 4_000_000_000  # of all images decoded
MOST_IMAGES = 5_000_000
MOST_CLASSES = 100_000
_GREY = ("1", "L")
_COLOUR = ("LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DAMAGE = (  # what Pillow raises when it meets a damaged file
    *(OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_Listed = tuple[str, Path]  # class, file


def class_folders(folder: Path, name: str) -> Dataset:
    """Read images from `folder/CLASS/*.png`, or from `folder/train/CLASS`, `folder/val/CLASS` and `folder/test/CLASS`.

    Classes are the folders' names in order, images those right inside them whose names end in .jpg, .jpeg, .png, .bmp,
    .ppm or .pgm; what begins with a dot is passed over. All images must have one size of at most 1024 x 1024 pixels.
    They become RGB, unless all are grey. With train and only one of val and test, that one is the test set.

    Args:
        folder: the data set's folder.
        name: what the data set is called.

    Returns:
        The images by part, class and name.

    Raises:
        DataError: there are no classes or no images, or too many; an image is damaged, too large or of another size.
    """
    split = (folder / "train").is_dir()
    parts = [_list_images(folder / part, part) if (folder / part).is_dir() else [] for part in PARTS] if split else []
    listed = [item for part in parts for item in part] if split else _list_images(folder, folder.name)
    classes = tuple(sorted({label for label, _ in (parts[0] if split else listed)}))
    if len(classes) < 2:
        raise DataError(f"{folder}: has {len(classes)} class folders with images, expected 2 or more, one per class")
    number = {label: index for index, label in enumerate(classes)}
    if unknown := [label for label, _ in listed if label not in number]:
        raise DataError(f"{folder}: class {unknown[0]!r} has no images in train; each class must be there")
    images = _decode_all([path for _, path in listed], folder)
    labels = torch.tensor([number[label] for label, _ in listed], dtype=torch.int64)
    sizes = _sizes(folder, [len(part) for part in parts]) if split else None
    height, width = images.shape[2:]
    return Dataset(
        name=name,
        images=images,
        labels=labels,
        classes=classes,
        source=f"{folder}: {len(listed):,} images of {height}x{width} pixels in {len(classes)} class folders",
        path=str(folder),
        parts=sizes,
    )


def _sizes(folder: Path, sizes: list[int]) -> tuple[int, int, int]:
    """How many images are for training, validation and test; of one held-out part, all are for the test."""
    train, validation, test = sizes
    if not validation and not test:
        raise DataError(
            f"{folder}: has train but neither val nor test; add one, or put the class folders right into it"
        )
    return (train, validation, test) if test else (train, 0, validation)


def _list_images(folder: Path, name: str) -> list[_Listed]:
    """The images inside the class folders of a folder, in order."""
    listed: list[_Listed] = []
    classes = _visible(folder, folders=True)
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{folder}: has {len(classes):,} class folders, expected at most {MOST_CLASSES:,}")
    for label in classes:
        found = [file for file in _visible(folder / label, folders=False) if file.lower().endswith(SUFFIXES)]
        if not found:
            raise DataError(
                f"{folder / label}: has no images; put its {', '.join(SUFFIXES)} right into it, or take the folder away"
            )
        listed += [(label, folder / label / file) for file in found]
        if len(listed) > MOST_IMAGES:
            raise DataError(f"{folder}: has more than the {MOST_IMAGES:,} images that can be read")
    if not listed:
        raise DataError(f"{folder}: has no class folders; make one per class and put its images into it")
    return listed


def _visible(folder: Path, *, folders: bool) -> list[str]:
    """The names of the folders, or of what is none, in a folder, in order."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir() == folders)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); check its permissions") from error


def _decode_all(paths: list[Path], folder: Path) -> torch.Tensor:
    """All images, uint8 (N, C, H, W); sizes and modes are compared before any pixel is decoded."""
    headers = [_header(path) for path in told(paths, f"looking at {folder.name}")]
    size, channels = headers[0][0], 1 if all(mode in _GREY for _, mode in headers) else 3
    for path, (other, _) in zip(paths, headers, strict=True):
        if other != size:
            raise DataError(
                f"{path}: is {_times(other)} pixels, {paths[0].name} {_times(size)}; bring all images to one size first"
            )
    needed = len(paths) * channels * size[0] * size[1]
    if needed > MOST_BYTES:
        raise DataError(
            f"{folder}: its {len(paths):,} images of {_times(size)} pixels need {needed / 1e9:.1f} GB, more than the "
            f"{MOST_BYTES / 1e9:.0f} GB that are read; make them smaller or fewer"
        )
    images = np.empty((len(paths), channels, size[1], size[0]), np.uint8)
    for index, image in enumerate(_decoded(paths, "L" if channels == 1 else "RGB", folder)):
        images[index] = image
    return torch.from_numpy(images)


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """An image's width and height, and its mode."""
    if not path.is_file():
        raise DataError(f"{path}: no regular file; take it away")
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            size, mode = image.size, image.mode
    except DAMAGE as error:
        raise DataError(f"{path}: no sound {', '.join(FORMATS)} image ({error}); save it again") from error
    if not 0 < min(size) <= max(size) <= MOST_SIDE:
        raise DataError(f"{path}: is {_times(size)} pixels, expected at most {MOST_SIDE} a side; make it smaller")
    if mode not in (*_GREY, *_COLOUR):
        raise DataError(f"{path}: its pixels are {mode}, expected 8 bits a channel; save it as grey or RGB")
    return size, mode


def _decoded(paths: list[Path], mode: str, folder: Path) -> Iterator[np.ndarray]:
    for path in told(paths, f"reading {folder.name}"):
        content = read_bounded(path, MOST_FILE)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels = np.asarray(image.convert(mode))
        except DAMAGE as error:
            raise DataError(f"{path}: no sound image ({error}); save it again") from error
        yield pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
