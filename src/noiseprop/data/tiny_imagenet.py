"""Tiny-ImageNet from its zip archive, decoded once into a memory-mapped cache; the archive is never extracted."""

import hashlib
import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import JpegImagePlugin

from noiseprop.data.class_folders import DAMAGE
from noiseprop.data.dataset import Dataset
from noiseprop.data.download import Remote, cache_root, data_root, obtain
from noiseprop.data.image_cache import read_mapped, write_mapped
from noiseprop.data.split import SPLIT_SEED, permutation
from noiseprop.data.tiny_imagenet_index import SIDE, Listing, list_images
from noiseprop.data.zip_archive import Archive, open_archive
from noiseprop.errors import DataError
from noiseprop.progress import told

REMOTE = Remote(  # MD5 90528d7ca1a48142e341f4ef8d21d0de
    "tiny-imagenet-200.zip",
    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    248_100_043,
)
OFFICIAL_SHARE = 500  # training images a class
VERSION = 1  # of the cache; another one makes old entries unused
MOST_JPEG = 65_536  # bytes of an image; the largest official one has about 4,000


@dataclass(frozen=True)
class _Index:
    """What lies beside the images in the cache."""

    classes: list[str]
    labels: list[int]
    boxes: list[list[int]]
    training: int
    validation: int


def tiny_imagenet(data_dir: Path | None = None) -> Dataset:
    """The images of train and val, those with public labels, pooled: 110,000 in the official archive.

    They lie in the order of `SPLIT_SEED`, so that the parts of the split are slices of one memory map.

    Args:
        data_dir: the folder that holds `tiny-imagenet-200.zip`; else $NOISEPROP_DATA, else a download into the user's
            cache. Archives with other counts of classes or images work too; `source` says what was found.

    Raises:
        DataError: the archive is missing, damaged, tampered with or no Tiny-ImageNet, or the cache cannot be written.
    """
    path = obtain(REMOTE, data_root(data_dir))
    digest = _sha256(path)
    folder = cache_root() / "tiny-imagenet"
    key = f"{digest}-{SPLIT_SEED}-{VERSION}"
    _sweep(folder)
    cached = read_mapped(folder, key)
    if cached is None:
        with _lock(folder, key):
            cached = read_mapped(folder, key)  # another process may have been faster
            if cached is None:
                _decode_all(path, folder, key)
                cached = read_mapped(folder, key)
    if cached is None:
        raise DataError(f"{folder}: the cache of decoded images is damaged as soon as it is written; check the disk")
    images, index = cached[0], _Index(**cached[1])
    boxes, share = torch.tensor(index.boxes, dtype=torch.int64), index.training / len(index.classes)
    return Dataset(
        name="tiny-imagenet",
        images=images,
        labels=torch.tensor(index.labels, dtype=torch.int64),
        classes=tuple(index.classes),
        source=f"Tiny-ImageNet: {len(index.classes)} classes, {index.training:,} training and {index.validation:,} "
        f"validation images, {int((boxes[:, 0] >= 0).sum()):,} of them with a box, from {path}, "
        + ("the official archive" if digest == REMOTE.sha256 else f"{_fewer(share)}which is not the official archive"),
        boxes=boxes,
        split_seed=SPLIT_SEED,
    )


def _fewer(share: float) -> str:
    """How an archive's training images a class compare with the official 500."""
    return "" if share == OFFICIAL_SHARE else f"with {share:g} of {OFFICIAL_SHARE} training images a class, "


def _decode_all(path: Path, folder: Path, key: str) -> None:
    """Decode the archive's images into the cache, in the split's order."""
    with open_archive(path) as archive:
        listing = list_images(archive)
        order = permutation(len(listing.labels), SPLIT_SEED).tolist()
        index = _Index(
            classes=listing.classes,
            labels=[listing.labels[i] for i in order],
            boxes=[listing.boxes[i] for i in order],
            training=listing.training,
            validation=len(listing.labels) - listing.training,
        )
        write_mapped(folder, key, _decoded(archive, listing, order), (len(order), 3, SIDE, SIDE), vars(index))


def _decoded(archive: Archive, listing: Listing, order: list[int]) -> Iterator[np.ndarray]:
    for i in told(order, "decoding Tiny-ImageNet, once"):
        member = listing.members[i]
        yield decode_jpeg(archive.read(member, MOST_JPEG), f"{archive.path}: {member}")


def decode_jpeg(data: bytes, where: str) -> np.ndarray:
    """Decode a 64x64 JPEG; a grey one becomes RGB.

    The plug-in for JPEG is called itself: nothing else can be decoded, and the size is checked before any pixel is.

    Args:
        data: the file's bytes.
        where: names the file in the error.

    Returns:
        uint8, (3, 64, 64).

    Raises:
        DataError: the bytes are no JPEG, of another size, or cut short.
    """
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            if image.size != (SIDE, SIDE):
                width, height = image.size
                raise DataError(f"{where} is {width}x{height} pixels, expected {SIDE}x{SIDE}; get the official archive")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except DAMAGE as error:
        raise DataError(f"{where} is no sound JPEG image ({error}); get the official archive again") from error


@contextmanager
def _lock(folder: Path, key: str) -> Generator[None]:
    """Processes that start together decode once; the lock of a killed one is free again."""
    lock = FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
        raise DataError(
            f"{folder}: the cache of decoded images cannot be written ({error}); make it writable or let "
            "XDG_CACHE_HOME name another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what killed processes have half-written; those at work hold the lock of what they write."""
    for part in folder.glob("*.part"):
        lock = FileLock(folder / f"{part.name.partition('.')[0]}.lock", timeout=0)
        with suppress(OSError, NotImplementedError), lock:  # an OSError also where the lock is held
            part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
