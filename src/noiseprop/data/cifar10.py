"""CIFAR-10 from its official binary archive or the unpacked folder; never from pickles."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from noiseprop.data.archives import iterate_tar_files
from noiseprop.data.dataset import Dataset
from noiseprop.data.download import RemoteFile, find_data_root, obtain_file
from noiseprop.errors import DataError
from noiseprop.files.untrusted import decompress_gzip, read_bounded

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FOLDER = "cifar-10-batches-bin"
ROW_BYTES = 1 + 3 * 32 * 32  # a label byte, then red, green and blue planes
MAX_ROWS = 10_000  # per file
CIFAR10_ARCHIVE = RemoteFile(  # MD5 c32a1d4ab5d03f1284b67883e8d87530
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170_052_171,
)
OFFICIAL_DIGESTS = {  # name: SHA-256 of the official file
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
JPEG_COPY_DIGESTS = {  # of the copy behind the published results, whose pixels went through JPEG
    "data_batch_1.bin": "95bc40a96c189b4ae973b8e377256610c0b0865f59a76bf2e7b5f5d3b6a9cd51",
    "data_batch_2.bin": "5bb5b7448ab13050c953f52e49624887d937f2dbc737ba8308b771b88b6f5ced",
    "data_batch_3.bin": "ecc5c793ff8d4a06b657d4f9dfc1eb1e29f15f7e75fed9b9c34eb4df9459108d",
    "data_batch_4.bin": "9e28b99d5925a27d404ec940d84ec491ea1cd48e3ceb0e9db193afd19c93e65b",
    "data_batch_5.bin": "887c29d30b4a78aa9e3c200efd2298570173503aa557ab013e8e62afb37a242a",
    "test_batch.bin": "4031d37f75019b03cd2c6e0837a85e5935f31d6a5050a8d117ad746543e6f124",
}
_MAX_ARCHIVE_BYTES = 200_000_000
_MAX_UNPACKED_BYTES = 200_000_000  # the official one unpacks to 184.4 million


def read_cifar10(data_dir: Path | None = None) -> Dataset:
    """Read all 60,000 images, the official training images first.

    Args:
        data_dir: folder that holds `cifar-10-batches-bin/` or `cifar-10-binary.tar.gz`; by default $NOISEPROP_DATA,
            otherwise a download into the user's cache.

    Raises:
        DataError: a file is missing, damaged or not a CIFAR-10 file.
    """
    root = find_data_root(data_dir)
    if root is not None and (root / CIFAR10_FOLDER).is_dir():
        source = root / CIFAR10_FOLDER
        contents: Mapping[str, bytes | memoryview] = {
            name: read_bounded(source / name, MAX_ROWS * ROW_BYTES) for name in OFFICIAL_DIGESTS
        }
    else:
        source = obtain_file(CIFAR10_ARCHIVE, root)
        contents = _unpack_archive(source)
    rows = {name: parse_cifar10_rows(content, source / name) for name, content in contents.items()}
    images = np.concatenate([rows[name][:, 1:] for name in OFFICIAL_DIGESTS]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([rows[name][:, 0] for name in OFFICIAL_DIGESTS])
    test_images = len(rows["test_batch.bin"])
    digests = {name: hashlib.sha256(contents[name]).hexdigest() for name in OFFICIAL_DIGESTS}
    is_official = digests == OFFICIAL_DIGESTS
    copy = "a copy decoded from JPEG, " * (digests == JPEG_COPY_DIGESTS)
    return Dataset(
        name="cifar10",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels).long(),
        classes=CIFAR10_CLASSES,
        source=f"CIFAR-10: {len(labels) - test_images:,} training and {test_images:,} test images from {source}, "
        + ("the official files" if is_official else f"{copy}which are not the official files"),
        is_official=is_official,
    )


def _unpack_archive(path: Path) -> dict[str, memoryview]:
    """Return the contents of the six data files of the archive by name."""
    raw = decompress_gzip(read_bounded(path, _MAX_ARCHIVE_BYTES), _MAX_UNPACKED_BYTES, path)
    found = {name: content for name, content in iterate_tar_files(raw, path) if name.startswith(f"{CIFAR10_FOLDER}/")}
    missing = [name for name in OFFICIAL_DIGESTS if f"{CIFAR10_FOLDER}/{name}" not in found]
    if missing:
        raise DataError(
            f"{path}: has no {CIFAR10_FOLDER}/{missing[0]}; get the official binary archive from {CIFAR10_ARCHIVE.url}"
        )
    return {name: found[f"{CIFAR10_FOLDER}/{name}"] for name in OFFICIAL_DIGESTS}


def parse_cifar10_rows(content: bytes | memoryview, path: Path) -> np.ndarray:
    """Check the structure of one data file, rows of a label byte and 3,072 pixel bytes.

    Returns:
        uint8, (N, 3073), a view of `content`.

    Raises:
        DataError: the file does not consist of whole rows, is empty or too long, or a label is above 9.
    """
    count, rest = divmod(len(content), ROW_BYTES)
    if rest or not 0 < count <= MAX_ROWS:
        raise DataError(
            f"{path}: {len(content):,} bytes, expected 1 to {MAX_ROWS:,} rows of {ROW_BYTES:,} bytes; "
            "get the official binary file again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(count, ROW_BYTES)
    if rows[:, 0].max() >= len(CIFAR10_CLASSES):
        raise DataError(f"{path}: label {rows[:, 0].max()}, expected 0 to 9; get the official binary file again")
    return rows
