"""Tiny-ImageNet from its zip archive, decoded once into a memory-mapped cache and never extracted."""

import hashlib
import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import torch
from filelock import FileLock
from PIL import JpegImagePlugin

from noiseprop.data.archives import ZipArchive, open_zip
from noiseprop.data.dataset import Dataset
from noiseprop.data.download import RemoteFile, find_cache_root, find_data_root, obtain_file
from noiseprop.data.image_cache import read_cached_images, write_cached_images
from noiseprop.data.image_files import PILLOW_ERRORS
from noiseprop.data.split import SPLIT_SEED, draw_permutation
from noiseprop.data.tiny_imagenet_index import IMAGE_SIDE, ArchiveListing, list_images
from noiseprop.errors import DataError
from noiseprop.progress import track_progress

TINY_IMAGENET_ARCHIVE = RemoteFile(  # MD5 90528d7ca1a48142e341f4ef8d21d0de
    "tiny-imagenet-200.zip",
    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    248_100_043,
)
OFFICIAL_SHARE = 500  # training images per class
CACHE_VERSION = 1  # entries of other versions are not used
MAX_JPEG_BYTES = 65_536  # the largest official image has about 4,000


class CacheIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Index beside the images in the cache."""

    classes: list[str]
    labels: list[int]
    boxes: list[list[int]]
    training: int
    validation: int


def read_tiny_imagenet(data_dir: Path | None = None) -> Dataset:
    """Read the images of train and val, which have public labels: 110,000 in the official archive.

    They are in the order of `SPLIT_SEED`, so that the parts of the split are slices of one memory map.

    Args:
        data_dir: folder that holds `tiny-imagenet-200.zip`; by default $NOISEPROP_DATA, otherwise a download into the
            user's cache. Archives with other numbers of classes or images work too; `source` states the numbers.

    Raises:
        DataError: the archive is missing, damaged, tampered with or not Tiny-ImageNet, or the cache cannot be written.
    """
    path = obtain_file(TINY_IMAGENET_ARCHIVE, find_data_root(data_dir))
    digest = _hash_file(path)
    folder = find_cache_root() / "tiny-imagenet"
    key = f"{digest}-{SPLIT_SEED}-{CACHE_VERSION}"
    _remove_partial_files(folder)
    cached = read_cached_images(folder, key, CacheIndex)
    if cached is None:
        with _lock_cache(folder, key):
            cached = read_cached_images(folder, key, CacheIndex)  # another process may have been faster
            if cached is None:
                _fill_cache(path, folder, key)
                cached = read_cached_images(folder, key, CacheIndex)
    if cached is None:
        raise DataError(f"{folder}: the cache of decoded images is damaged as soon as it is written; check the disk")
    is_official = digest == TINY_IMAGENET_ARCHIVE.sha256
    images, index = cached
    boxes, share = torch.tensor(index.boxes, dtype=torch.int64), index.training / len(index.classes)
    return Dataset(
        name="tiny-imagenet",
        images=images,
        labels=torch.tensor(index.labels, dtype=torch.int64),
        classes=tuple(index.classes),
        source=f"Tiny-ImageNet: {len(index.classes)} classes, {index.training:,} training and {index.validation:,} "
        f"validation images, {int((boxes[:, 0] >= 0).sum()):,} of them with a box, from {path}, "
        + ("the official archive" if is_official else f"{_describe_share(share)}which is not the official archive"),
        boxes=boxes,
        split_seed=SPLIT_SEED,
        is_official=is_official,
    )


def _describe_share(share: float) -> str:
    """Compare the number of training images per class with the official 500."""
    return "" if share == OFFICIAL_SHARE else f"with {share:g} of {OFFICIAL_SHARE} training images a class, "


def _fill_cache(path: Path, folder: Path, key: str) -> None:
    """Decode the archive's images into the cache, in the order of the split."""
    with open_zip(path) as archive:
        listing = list_images(archive)
        order = draw_permutation(len(listing.labels), SPLIT_SEED).tolist()
        index = CacheIndex(
            classes=listing.classes,
            labels=[listing.labels[i] for i in order],
            boxes=[listing.boxes[i] for i in order],
            training=listing.training,
            validation=len(listing.labels) - listing.training,
        )
        write_cached_images(
            folder, key, _decode_members(archive, listing, order), (len(order), 3, IMAGE_SIDE, IMAGE_SIDE), index
        )


def _decode_members(archive: ZipArchive, listing: ArchiveListing, order: list[int]) -> Iterator[np.ndarray]:
    for i in track_progress(order, "decoding Tiny-ImageNet, once"):
        member = listing.members[i]
        yield decode_jpeg(archive.read(member, MAX_JPEG_BYTES), f"{archive.path}: {member}")


def decode_jpeg(data: bytes, where: str) -> np.ndarray:
    """Decode a 64x64 JPEG; a grey one becomes RGB.

    Calls Pillow's JPEG plug-in directly, so that nothing else is decoded, and checks the size before decoding pixels.

    Args:
        data: bytes of the file.
        where: name of the file for the error message.

    Returns:
        uint8, (3, 64, 64).

    Raises:
        DataError: the bytes are not a JPEG, of another size, or truncated.
    """
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            if image.size != (IMAGE_SIDE, IMAGE_SIDE):
                width, height = image.size
                raise DataError(
                    f"{where} is {width}x{height} pixels, expected {IMAGE_SIDE}x{IMAGE_SIDE}; get the official archive"
                )
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except PILLOW_ERRORS as error:
        raise DataError(f"{where} is not a valid JPEG image ({error}); get the official archive again") from error


@contextmanager
def _lock_cache(folder: Path, key: str) -> Generator[None]:
    """Lock a cache entry, so that processes that start together decode once; a killed process frees its lock."""
    lock = FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter on file systems without locks
        raise DataError(
            f"{folder}: the cache of decoded images cannot be written ({error}); make it writable or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove_partial_files(folder: Path) -> None:
    """Remove partial files of killed processes; a process that still writes holds the lock of its entry."""
    for part in folder.glob("*.part"):
        lock = FileLock(folder / f"{part.name.partition('.')[0]}.lock", timeout=0)
        with suppress(OSError, NotImplementedError), lock:  # an OSError also if the lock is held
            part.unlink(missing_ok=True)


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
