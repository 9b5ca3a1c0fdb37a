"""Decoding of user-supplied JPEG, PNG, BMP and PPM files, within limits of size and number."""

import io
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from noiseprop.errors import DataError
from noiseprop.files.untrusted import read_bounded
from noiseprop.progress import track_progress

PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "PPM")
MAX_IMAGE_FILE = 32_000_000  # bytes
MAX_SIDE = 1024  # pixels
MAX_DECODED_BYTES = 4_000_000_000  # of all images of a data set
PILLOW_ERRORS = (  # what Pillow raises for damaged files
    *(OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
_GREY = ("1", "L")
_COLOUR = ("LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_UPRIGHT = {  # EXIF orientation: the transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageHeader:
    """Header of an image file.

    Attributes:
        size: width and height in pixels of the upright image.
        mode: Pillow's mode.
        is_turned: whether the stored pixels must be turned upright, as the EXIF orientation states.
    """

    size: tuple[int, int]
    mode: str
    is_turned: bool


def decode_images(paths: list[Path], folder: Path) -> tuple[Tensor, int]:
    """Decode images of one size, turned upright by their EXIF orientation; grey if all are, otherwise RGB.

    Sizes and modes are compared before any pixel is decoded.

    Args:
        paths: the files.
        folder: folder of the data set, for messages.

    Returns:
        The images, uint8 (N, C, H, W), and how many of them were turned upright.

    Raises:
        DataError: an image is damaged, too large, of another size or mode, or all together need too much memory.
    """
    headers = [_read_image_header(path) for path in track_progress(paths, f"checking {folder.name}")]
    size, channels = headers[0].size, 1 if all(header.mode in _GREY for header in headers) else 3
    for path, header in zip(paths, headers, strict=True):
        if header.size != size:
            raise DataError(
                f"{path}: is {_format_size(header.size)} pixels, {paths[0].name} {_format_size(size)}; "
                "resize all images to one size first"
            )
    needed = len(paths) * channels * size[0] * size[1]
    if needed > MAX_DECODED_BYTES:
        raise DataError(
            f"{folder}: its {len(paths):,} images of {_format_size(size)} pixels need {needed / 1e9:.1f} GB, more than "
            f"the limit of {MAX_DECODED_BYTES / 1e9:.0f} GB; use smaller or fewer images"
        )
    images = np.empty((len(paths), channels, size[1], size[0]), np.uint8)
    for index, image in enumerate(_iterate_pixels(paths, "L" if channels == 1 else "RGB", folder)):
        images[index] = image
    return torch.from_numpy(images), sum(header.is_turned for header in headers)


def _read_image_header(path: Path) -> ImageHeader:
    if not path.is_file():
        raise DataError(f"{path}: not a regular file; remove it")
    try:
        with path.open("rb") as file, _open_image(file) as image:
            size, mode = image.size, image.mode
            orientation = _read_orientation(image) if max(size) <= MAX_SIDE else 1
    except PILLOW_ERRORS as error:
        raise DataError(f"{path}: not a valid {', '.join(PILLOW_FORMATS)} image ({error}); save it again") from error
    if not 0 < min(size) <= max(size) <= MAX_SIDE:
        raise DataError(f"{path}: is {_format_size(size)} pixels, expected at most {MAX_SIDE} per side; resize it")
    if mode not in (*_GREY, *_COLOUR):
        raise DataError(f"{path}: its pixels are {mode}, expected 8 bits per channel; save it as grey or RGB")
    return ImageHeader(size if orientation < 5 else (size[1], size[0]), mode, orientation != 1)


@contextmanager
def _open_image(file: BinaryIO) -> Generator[Image.Image]:
    """Open an image in one of `PILLOW_FORMATS`; Pillow's warnings of damaged metadata are ignored."""
    with warnings.catch_warnings(action="ignore"), Image.open(file, formats=PILLOW_FORMATS) as image:
        yield image


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if it is missing or invalid; EXIF data behind the pixels of a PNG is not read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to look for it
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return orientation if orientation in _UPRIGHT else 1


def _iterate_pixels(paths: list[Path], mode: str, folder: Path) -> Iterator[np.ndarray]:
    """Yield the pixels of each file, (C, H, W)."""
    for path in track_progress(paths, f"reading {folder.name}"):
        content = read_bounded(path, MAX_IMAGE_FILE)
        try:
            with _open_image(io.BytesIO(content)) as image:
                orientation = _read_orientation(image)
                upright = image.transpose(_UPRIGHT[orientation]) if orientation != 1 else image
                pixels = np.asarray(upright.convert(mode))
        except PILLOW_ERRORS as error:
            raise DataError(f"{path}: not a valid image ({error}); save it again") from error
        yield pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
