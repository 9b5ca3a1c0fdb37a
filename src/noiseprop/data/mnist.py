"""MNIST from its four official IDX files."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from noiseprop.data.dataset import Dataset
from noiseprop.data.download import RemoteFile, find_data_root, obtain_file
from noiseprop.errors import DataError
from noiseprop.files.untrusted import decompress_gzip, read_bounded

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
DIGIT_SIDE = 28
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801  # unsigned bytes in 3 dimensions and in 1

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FILES = (  # name, size and SHA-256 of the official file
    ("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
MNIST_REMOTES = tuple(RemoteFile(f"mnist/{name}", f"{_MIRROR}/{name}", sha256, size) for name, size, sha256 in _FILES)
MAX_TRAIN, MAX_TEST = 60_000, 10_000
# SHA-256 of all official pixels, then all labels; the MD5 of the unpacked image files are
# 6bbc9ace898e44ae57da46a324031adb (train) and 2646ac647ad5339dbf082846283269ea (test).
OFFICIAL_DIGEST = "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83"


def read_mnist(data_dir: Path | None = None) -> Dataset:
    """Read all 70,000 digits, the official training images first.

    Args:
        data_dir: folder that holds `mnist/*.gz`; by default $NOISEPROP_DATA, otherwise a download into the user's
            cache.

    Raises:
        DataError: a file is missing, damaged or not an MNIST file.
    """
    root = find_data_root(data_dir)
    train_images, train_labels, test_images, test_labels = (obtain_file(remote, root) for remote in MNIST_REMOTES)
    train = _read_pair(train_images, train_labels, MAX_TRAIN)
    test = _read_pair(test_images, test_labels, MAX_TEST)
    images, labels = np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])
    is_official = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == OFFICIAL_DIGEST
    return Dataset(
        name="mnist",
        images=torch.from_numpy(images).unsqueeze(1),
        labels=torch.from_numpy(labels).long(),
        classes=DIGITS,
        source=f"MNIST: {len(train[1]):,} training and {len(test[1]):,} test images from {train_images.parent}, "
        + ("the official images" if is_official else "which are not the official images"),
        is_official=is_official,
    )


def _read_pair(images_path: Path, labels_path: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one half of MNIST: images (N, 28, 28) and labels (N,), both uint8."""
    pixels = read_idx(images_path, IMAGES_MAGIC, (DIGIT_SIDE, DIGIT_SIDE), limit)
    labels = read_idx(labels_path, LABELS_MAGIC, (), limit)
    if len(pixels) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels):,} labels for the {len(pixels):,} images of {images_path.name}; "
            "get both official files again"
        )
    if labels.max() >= len(DIGITS):
        raise DataError(f"{labels_path}: label {labels.max()}, expected 0 to 9; get the official file again")
    return pixels, labels


def read_idx(path: Path, magic: int, item: tuple[int, ...], limit: int) -> np.ndarray:
    """Read one gzip-compressed IDX file of unsigned bytes.

    The format has a big-endian int32 each for the magic number, the number of items and the sizes of an item, then the
    bytes (http://yann.lecun.com/exdb/mnist). The largest allowed file bounds the memory, whatever the header claims.

    Args:
        path: the file.
        magic: the expected magic number.
        item: the expected shape of each item.
        limit: the largest number of items.

    Returns:
        uint8, (N, *item), a view of the decompressed bytes.

    Raises:
        DataError: the file is missing, truncated, too long, or has another header.
    """
    header_size = 4 * (2 + len(item))
    item_size = int(np.prod(item, dtype=np.int64))
    max_bytes = header_size + limit * item_size
    packed = read_bounded(path, max_bytes + max_bytes // 1000 + 1024)  # deflate adds 5 bytes to incompressible 16 kB
    raw = decompress_gzip(packed, max_bytes, path)
    if len(raw) < header_size:
        raise DataError(f"{path}: {len(raw)} bytes, too few for an IDX header; get the official file again")
    found_magic, count, *found_item = (int(n) for n in np.frombuffer(raw, ">u4", count=header_size // 4))
    if found_magic != magic:
        raise DataError(
            f"{path}: magic number 0x{found_magic:08x}, expected 0x{magic:08x}; get the official file again"
        )
    if tuple(found_item) != item:
        raise DataError(f"{path}: items of shape {tuple(found_item)}, expected {item}; get the official file again")
    if not 0 < count <= limit:
        raise DataError(
            f"{path}: its header claims {count:,} items, expected 1 to {limit:,}; get the official file again"
        )
    if len(raw) != header_size + count * item_size:
        raise DataError(
            f"{path}: {len(raw) - header_size:,} bytes of data, its header claims {count * item_size:,}; "
            "get the official file again"
        )
    return np.frombuffer(raw, np.uint8, offset=header_size).reshape(count, *item)
