"""MNIST from its four official IDX files."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from noiseprop.data.dataset import Dataset
from noiseprop.data.download import Remote, data_root, obtain
from noiseprop.errors import DataError
from noiseprop.files.bounded import gunzip, read_bounded

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
SIDE = 28
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801  # unsigned bytes in 3 dimensions, in 1

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FILES = (  # name, bytes and SHA-256 of the official file
    ("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
REMOTES = tuple(Remote(f"mnist/{name}", f"{_MIRROR}/{name}", sha256, size) for name, size, sha256 in _FILES)
TRAIN, TEST = 60_000, 10_000
# SHA-256 of the official pixels and labels, pooled; the MD5 of the unpacked image files are
# 6bbc9ace898e44ae57da46a324031adb (train) and 2646ac647ad5339dbf082846283269ea (test).
OFFICIAL = "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83"


def mnist(data_dir: Path | None = None) -> Dataset:
    """All 70,000 digits, the official training images first.

    Args:
        data_dir: the folder that holds `mnist/*.gz`; else $NOISEPROP_DATA, else a download into the user's cache.

    Raises:
        DataError: a file is missing, damaged or no MNIST file.
    """
    root = data_root(data_dir)
    train_images, train_labels, test_images, test_labels = (obtain(remote, root) for remote in REMOTES)
    train = _pair(train_images, train_labels, TRAIN)
    test = _pair(test_images, test_labels, TEST)
    images, labels = np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])
    official = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == OFFICIAL
    return Dataset(
        name="mnist",
        images=torch.from_numpy(images).unsqueeze(1),
        labels=torch.from_numpy(labels).long(),
        classes=DIGITS,
        source=f"MNIST: {len(train[1]):,} training and {len(test[1]):,} test images from {train_images.parent}, "
        + ("the official images" if official else "which are not the official images"),
    )


def _pair(images_path: Path, labels_path: Path, most: int) -> tuple[np.ndarray, np.ndarray]:
    """One half of MNIST: images (N, 28, 28) and labels (N,), both uint8."""
    pixels = read_idx(images_path, IMAGES_MAGIC, (SIDE, SIDE), most)
    labels = read_idx(labels_path, LABELS_MAGIC, (), most)
    if len(pixels) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels):,} labels for the {len(pixels):,} images of {images_path.name}; "
            "get both official files again"
        )
    if labels.max() >= len(DIGITS):
        raise DataError(f"{labels_path}: label {labels.max()} is no digit; get the official file again")
    return pixels, labels


def read_idx(path: Path, magic: int, item: tuple[int, ...], most: int) -> np.ndarray:
    """Read one gzip-packed IDX file of unsigned bytes.

    The format is a big-endian int32 each for the magic number, the number of items and the item's sizes, then the
    bytes (http://yann.lecun.com/exdb/mnist). Memory is bounded by the largest file allowed, whatever the header claims.

    Args:
        path: the file.
        magic: the magic number that it must have.
        item: the shape that each item must have.
        most: the most items that it may have.

    Returns:
        uint8, (N, *item), a view of the unpacked bytes.

    Raises:
        DataError: the file is missing, truncated, too long, or its header is not the expected one.
    """
    header_size = 4 * (2 + len(item))
    item_size = int(np.prod(item, dtype=np.int64))
    limit = header_size + most * item_size
    packed = read_bounded(path, limit + limit // 1000 + 1024)  # deflate adds 5 bytes to 16 kB that it cannot pack
    raw = gunzip(packed, limit, path)
    if len(raw) < header_size:
        raise DataError(f"{path}: {len(raw)} bytes are too few for an IDX header; get the official file again")
    found_magic, count, *found_item = (int(n) for n in np.frombuffer(raw, ">u4", count=header_size // 4))
    if found_magic != magic:
        raise DataError(
            f"{path}: magic number 0x{found_magic:08x}, expected 0x{magic:08x}; get the official file again"
        )
    if tuple(found_item) != item:
        raise DataError(f"{path}: items of shape {tuple(found_item)}, expected {item}; get the official file again")
    if not 0 < count <= most:
        raise DataError(
            f"{path}: its header claims {count:,} items, expected 1 to {most:,}; get the official file again"
        )
    if len(raw) != header_size + count * item_size:
        raise DataError(
            f"{path}: {len(raw) - header_size:,} bytes of data, its header claims {count * item_size:,}; "
            "get the official file again"
        )
    return np.frombuffer(raw, np.uint8, offset=header_size).reshape(count, *item)
