"""Decoded images in a memory-mapped cache: written aside, moved into place when whole, checked whenever it is read.

A cache entry is two files: KEY.npy holds the images and KEY.json what belongs to them. The second file starts with the
SHA-256 of both, so an entry that is half-made, damaged or mixed from two writings is never used.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from noiseprop.data.npy import map_array
from noiseprop.errors import DataError
from noiseprop.files.bounded import read_bounded
from noiseprop.files.untrusted import parse_json

_MOST_INDEX = 64_000_000  # bytes of KEY.json


def read_mapped(folder: Path, key: str) -> tuple[Tensor, dict[str, Any]] | None:
    """Map a cache entry's images into memory.

    Every byte is read once, for the checksum (0.2 s for 370 MB that lie in the page cache).

    Returns:
        The images, uint8 (N, C, H, W), mapped copy-on-write, and what belongs to them; None where there is no such
        entry or it is damaged.
    """
    images_path, index_path = _paths(folder, key)
    try:
        stated, _, index = read_bounded(index_path, _MOST_INDEX).partition(b"\n")
        if _digest(images_path, index).encode() != stated:
            return None
        images, what = map_array(images_path, "c"), parse_json(index.decode())
    except (DataError, OSError, ValueError):
        return None
    sound = images.dtype == np.uint8 and images.ndim == 4 and isinstance(what, dict)
    return (torch.from_numpy(images), what) if sound else None


def write_mapped(
    folder: Path, key: str, images: Iterable[np.ndarray], shape: tuple[int, ...], index: dict[str, Any]
) -> None:
    """Write a cache entry; it counts only once both its files are on the disk and in place.

    Call it under a lock: two writers of one entry would write to the same files.

    Args:
        folder: the cache's folder, made where it is missing.
        key: the entry's name.
        images: the images in order, each uint8 of shape `shape[1:]`; memory stays that of one of them.
        shape: (N, C, H, W).
        index: what belongs to the images, JSON-able.

    Raises:
        DataError: the disk is full, or the folder cannot be written; an older entry stays as it was.
    """
    images_path, index_path = _paths(folder, key)
    parts = [path.with_suffix(path.suffix + ".part") for path in (images_path, index_path)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with parts[0].open("wb") as file:
                _write_images(file, images, shape)
            packed = json.dumps(index).encode()
            with parts[1].open("wb") as file:
                file.write(_digest(parts[0], packed).encode() + b"\n" + packed)
                _sync(file)
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
            + " or let XDG_CACHE_HOME name another folder"
        ) from error


def _paths(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"{key}.npy", folder / f"{key}.json"


def _write_images(file: BinaryIO, images: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write a .npy file image by image, and wait until it is on the disk."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    count = 0
    for image in images:
        if image.shape != shape[1:] or image.dtype != np.uint8:
            raise ValueError(f"image {count} is {image.dtype} of shape {image.shape}, expected uint8 of {shape[1:]}")
        file.write(np.ascontiguousarray(image).data)
        count += 1
    if count != shape[0]:
        raise ValueError(f"{count} images came, expected {shape[0]}")
    _sync(file)


def _digest(images_path: Path, index: bytes) -> str:
    """SHA-256, in hex, of an entry's images and of what belongs to them."""
    with images_path.open("rb") as images:
        digest = hashlib.file_digest(images, "sha256")
    digest.update(index)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
