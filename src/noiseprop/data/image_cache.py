"""Memory-mapped cache of decoded images, renamed into place when complete and verified whenever it is read.

A cache entry has two files: KEY.npy holds the images, and KEY.json their index. The second file starts with the SHA-256
of both, so an entry that is incomplete, damaged or mixed from two writes is never used.
"""

import errno
import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import torch
from torch import Tensor

from noiseprop.data.npy import map_npy
from noiseprop.errors import DataError
from noiseprop.files.records import Record, convert_record
from noiseprop.files.untrusted import parse_json, read_bounded

_MAX_INDEX_BYTES = 64_000_000  # bytes of KEY.json


def read_cached_images(folder: Path, key: str, kind: type[Record]) -> tuple[Tensor, Record] | None:
    """Map the images of a cache entry into memory.

    Every byte is read once for the checksum (0.2 s for 370 MB in the page cache).

    Args:
        folder: folder of the cache.
        key: name of the entry.
        kind: type of the index.

    Returns:
        The images, uint8 (N, C, H, W), mapped copy-on-write, and their index; None if the entry is missing or damaged.
    """
    images_path, index_path = _entry_paths(folder, key)
    try:
        stated, _, index = read_bounded(index_path, _MAX_INDEX_BYTES).partition(b"\n")
        if _hash_entry(images_path, index).encode() != stated:
            return None
        images, record = map_npy(images_path, "c"), convert_record(parse_json(index.decode()), kind)
    except (DataError, OSError, ValueError):
        return None
    is_valid = images.dtype == np.uint8 and images.ndim == 4
    return (torch.from_numpy(images), record) if is_valid else None


def write_cached_images(
    folder: Path, key: str, images: Iterable[np.ndarray], shape: tuple[int, ...], index: msgspec.Struct
) -> None:
    """Write a cache entry, which is valid only once both its files are on the disk and in place.

    Requires a lock: two writers of one entry would write to the same files.

    Args:
        folder: folder of the cache, created if missing.
        key: name of the entry.
        images: images in order, each uint8 of shape `shape[1:]`; one is held in memory at a time.
        shape: (N, C, H, W).
        index: record on the images.

    Raises:
        DataError: the disk is full, or the folder cannot be written; an older entry stays unchanged.
    """
    images_path, index_path = _entry_paths(folder, key)
    parts = [path.with_suffix(path.suffix + ".part") for path in (images_path, index_path)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with parts[0].open("wb") as file:
                _write_images(file, images, shape)
            packed = msgspec.json.encode(index)
            with parts[1].open("wb") as file:
                file.write(_hash_entry(parts[0], packed).encode() + b"\n" + packed)
                _sync_file(file)
            parts[0].replace(images_path)
            parts[1].replace(index_path)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DataError(
            f"{folder}: the cache of decoded images cannot be written ({error.strerror or error}); "
            + (f"free {math.ceil(math.prod(shape) / 1e6):,} MB" if full else "make it writable")
            + " or set XDG_CACHE_HOME to another folder"
        ) from error


def _entry_paths(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"{key}.npy", folder / f"{key}.json"


def _write_images(file: BinaryIO, images: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write a .npy file image by image, and flush it to the disk."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    count = 0
    for image in images:
        if image.shape != shape[1:] or image.dtype != np.uint8:
            raise ValueError(f"image {count} is {image.dtype} of shape {image.shape}, expected uint8 of {shape[1:]}")
        file.write(np.ascontiguousarray(image).data)
        count += 1
    if count != shape[0]:
        raise ValueError(f"{count} images, expected {shape[0]}")
    _sync_file(file)


def _hash_entry(images_path: Path, index: bytes) -> str:
    """Return the SHA-256, in hex, of the images and the index of an entry."""
    with images_path.open("rb") as images:
        digest = hashlib.file_digest(images, "sha256")
    digest.update(index)
    return digest.hexdigest()


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
