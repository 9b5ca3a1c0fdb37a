"""CIFAR-10 from its official binary archive, or the folder that the archive unpacks to; never from pickles."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from noiseprop.data.dataset import Dataset
from noiseprop.data.download import Remote, data_root, obtain
from noiseprop.data.tar_archive import plain_files
from noiseprop.errors import DataError
from noiseprop.files.bounded import gunzip, read_bounded

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
ROW = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes
MOST_ROWS = 10_000  # of a file
REMOTE = Remote(  # MD5 c32a1d4ab5d03f1284b67883e8d87530
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170_052_171,
)
FILES = {  # name: SHA-256 of the official file
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
JPEG_COPY = {  # the same of the copy with which this project's results were made: its pixels went through JPEG
    "data_batch_1.bin": "95bc40a96c189b4ae973b8e377256610c0b0865f59a76bf2e7b5f5d3b6a9cd51",
    "data_batch_2.bin": "5bb5b7448ab13050c953f52e49624887d937f2dbc737ba8308b771b88b6f5ced",
    "data_batch_3.bin": "ecc5c793ff8d4a06b657d4f9dfc1eb1e29f15f7e75fed9b9c34eb4df9459108d",
    "data_batch_4.bin": "9e28b99d5925a27d404ec940d84ec491ea1cd48e3ceb0e9db193afd19c93e65b",
    "data_batch_5.bin": "887c29d30b4a78aa9e3c200efd2298570173503aa557ab013e8e62afb37a242a",
    "test_batch.bin": "4031d37f75019b03cd2c6e0837a85e5935f31d6a5050a8d117ad746543e6f124",
}
_MOST_PACKED = 200_000_000  # bytes of the archive
_MOST_UNPACKED = 200_000_000  # the official one unpacks to 184.4 million


def cifar10(data_dir: Path | None = None) -> Dataset:
    """All 60,000 images, the official training images first.

    Args:
        data_dir: the folder that holds `cifar-10-batches-bin/` or `cifar-10-binary.tar.gz`; else $NOISEPROP_DATA, else
            a download into the user's cache.

    Raises:
        DataError: a file is missing, damaged or no CIFAR-10 file.
    """
    root = data_root(data_dir)
    if root is not None and (root / FOLDER).is_dir():
        where = root / FOLDER
        contents: Mapping[str, bytes | memoryview] = {
            name: read_bounded(where / name, MOST_ROWS * ROW) for name in FILES
        }
    else:
        where = obtain(REMOTE, root)
        contents = _unpack(where)
    rows = {name: parse_rows(content, where / name) for name, content in contents.items()}
    images = np.concatenate([rows[name][:, 1:] for name in FILES]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([rows[name][:, 0] for name in FILES])
    tests = len(rows["test_batch.bin"])
    digests = {name: hashlib.sha256(contents[name]).hexdigest() for name in FILES}
    other = "a copy decoded from JPEG, " * (digests == JPEG_COPY)
    return Dataset(
        name="cifar10",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels).long(),
        classes=CLASSES,
        source=f"CIFAR-10: {len(labels) - tests:,} training and {tests:,} test images from {where}, "
        + ("the official files" if digests == FILES else f"{other}which are not the official files"),
    )


def _unpack(path: Path) -> dict[str, memoryview]:
    """The contents of the six data files of the archive, by name."""
    raw = gunzip(read_bounded(path, _MOST_PACKED), _MOST_UNPACKED, path)
    found = {name: content for name, content in plain_files(raw, path) if name.startswith(f"{FOLDER}/")}
    missing = [name for name in FILES if f"{FOLDER}/{name}" not in found]
    if missing:
        raise DataError(f"{path}: has no {FOLDER}/{missing[0]}; get the official binary archive from {REMOTE.url}")
    return {name: found[f"{FOLDER}/{name}"] for name in FILES}


def parse_rows(content: bytes | memoryview, path: Path) -> np.ndarray:
    """Check one data file's structure: rows of a label byte and 3,072 pixel bytes.

    Returns:
        uint8, (N, 3073), a view of `content`.

    Raises:
        DataError: the file is no whole number of rows, is empty or too long, or a label is above 9.
    """
    count, rest = divmod(len(content), ROW)
    if rest or not 0 < count <= MOST_ROWS:
        raise DataError(
            f"{path}: {len(content):,} bytes, expected 1 to {MOST_ROWS:,} rows of {ROW:,} bytes; "
            "get the official binary file again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(count, ROW)
    if rows[:, 0].max() >= len(CLASSES):
        raise DataError(f"{path}: label {rows[:, 0].max()} is no class of CIFAR-10; get the official binary file again")
    return rows
