"""User images in one folder per class, directly or inside train, val and test."""

import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import torch

from noiseprop.data.dataset import Dataset
from noiseprop.data.image_files import decode_images
from noiseprop.errors import DataError, NoisepropWarning, suggest_name
from noiseprop.files.untrusted import has_control_characters

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm")
SPLIT_PARTS = ("train", "val", "test")
MAX_IMAGES = 5_000_000
MAX_DATA_CLASSES = 100_000
_UNREAD_SUFFIXES = {".webp", ".avif", ".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".jp2", ".jfif", ".svg"}

_ClassImage = tuple[str, Path]  # class, file


def read_class_folders(folder: Path, name: str) -> Dataset:
    """Read images from `folder/CLASS/*.png`, or from `folder/train/CLASS`, `folder/val/CLASS` and `folder/test/CLASS`.

    Class names are those of the folders in order, compared in Unicode's form NFC. Images are files directly inside
    them that end in .jpg, .jpeg, .png, .bmp, .ppm or .pgm; all other files are counted in `source`, except names that
    start with a dot, and a warning reports images in other formats. All images must have one size of at most
    1024 x 1024 pixels after their EXIF orientation is applied. They become RGB unless all are grey. With train and only
    one of val and test, that one is the test set.

    Args:
        folder: folder of the data set.
        name: name of the data set.

    Returns:
        The images by part, class and name.

    Raises:
        DataError: classes or images are missing, or too many; an image is damaged, too large or of another size.

    Warns:
        NoisepropWarning: class folders hold images of other formats, which are skipped.
    """
    skipped: Counter[str] = Counter()
    is_split = (folder / "train").is_dir()
    if is_split:
        parts = [_list_images(folder / part, skipped) if (folder / part).is_dir() else [] for part in SPLIT_PARTS]
        skipped["folder"] += sum(entry not in SPLIT_PARTS for entry in _list_entries(folder, folders=True))
    else:
        parts = [_list_images(folder, skipped)]
    images_listed = [item for part in parts for item in part]
    classes = tuple(sorted({label for label, _ in parts[0]}))
    if len(classes) < 2:
        raise DataError(f"{folder}: has {len(classes)} class folders with images, expected 2 or more, one per class")
    indices = {label: index for index, label in enumerate(classes)}
    if unknown := [label for label, _ in images_listed if label not in indices]:
        hint = suggest_name(unknown[0], classes)
        raise DataError(f"{folder}: class {unknown[0]!r} has no images in train{hint}; each class needs some there")
    sizes = _get_part_sizes(folder, [len(part) for part in parts]) if is_split else None
    images, turned = decode_images([path for _, path in images_listed], folder)
    height, width = images.shape[2:]
    notes = f", {turned:,} of them turned upright by their EXIF orientation" * (turned > 0)
    if found := _format_counts(skipped):
        notes += f", skipping {found}"
    if unread := _format_counts(Counter({kind: n for kind, n in skipped.items() if kind in _UNREAD_SUFFIXES})):
        warnings.warn(
            f"{folder}: skipped {unread}; convert them to PNG or JPEG to use them", NoisepropWarning, stacklevel=2
        )
    return Dataset(
        name=name,
        images=images,
        labels=torch.tensor([indices[label] for label, _ in images_listed], dtype=torch.int64),
        classes=classes,
        source=f"{folder}: {len(images):,} images of {height}x{width} pixels in {len(classes)} class folders{notes}",
        path=str(folder),
        parts=sizes,
    )


def _get_part_sizes(folder: Path, sizes: list[int]) -> tuple[int, int, int]:
    """Return the numbers of training, validation and test images; a single held-out part is the test set."""
    train, validation, test = sizes
    if not validation and not test:
        raise DataError(
            f"{folder}: has train but neither val nor test; add one, or put the class folders directly into it"
        )
    return (train, validation, test) if test else (train, 0, validation)


def _list_images(folder: Path, skipped: Counter[str]) -> list[_ClassImage]:
    """List the images inside the class folders of a folder in order, and count skipped entries by kind."""
    class_folders = _list_entries(folder, folders=True)
    if len(class_folders) > MAX_DATA_CLASSES:
        raise DataError(f"{folder}: has {len(class_folders):,} class folders, expected at most {MAX_DATA_CLASSES:,}")
    by_label: dict[str, list[_ClassImage]] = {}
    count = 0
    for class_folder in class_folders:
        label = _check_class_name(class_folder, folder)
        if label in by_label:
            raise DataError(
                f"{folder}: two class folders named {label!r} differ only in Unicode normalisation; merge them"
            )
        names = _list_entries(folder / class_folder, folders=False)
        others = Counter(_get_kind(file) for file in names if not file.lower().endswith(IMAGE_SUFFIXES))
        others["folder"] = len(_list_entries(folder / class_folder, folders=True))
        found = [file for file in names if file.lower().endswith(IMAGE_SUFFIXES)]
        if not found:
            only = f" (only {_format_counts(others)})" if others.total() else ""
            raise DataError(
                f"{folder / class_folder}: has no images{only}; put {', '.join(IMAGE_SUFFIXES)} files directly into it "
                "or remove it"
            )
        skipped.update(others)
        count += len(found)
        if count > MAX_IMAGES:
            raise DataError(f"{folder}: has more images than the limit of {MAX_IMAGES:,}")
        by_label[label] = [(label, folder / class_folder / file) for file in found]
    if not by_label:
        raise DataError(f"{folder}: has no class folders; create one per class and put its images into it")
    return [item for label in sorted(by_label) for item in by_label[label]]


def _check_class_name(class_folder: str, folder: Path) -> str:
    """Return the name of a class in Unicode's form NFC, in which equal texts are equal."""
    if has_control_characters(class_folder):
        raise DataError(
            f"{folder}: class folder {class_folder!r} has control characters or bytes that are not UTF-8; rename it"
        )
    return unicodedata.normalize("NFC", class_folder)


def _list_entries(folder: Path, *, folders: bool) -> list[str]:
    """List the names of the folders, or of all other entries, in a folder in order, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir() == folders)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); check its permissions") from error


def _get_kind(file: str) -> str:
    """Return the suffix of a file's name in lower case, if it is short enough to print."""
    suffix = os.path.splitext(file)[1].lower()
    return suffix if suffix.isascii() and suffix.isprintable() and 1 < len(suffix) <= 8 else "other"


def _format_counts(counts: Counter[str]) -> str:
    """Format counts by kind, the most frequent first.

    >>> _format_counts(Counter({".webp": 1200, "folder": 1, ".txt": 0}))
    '1,200 .webp files and 1 folder'
    """
    nouns = {kind: kind if kind == "folder" else f"{kind} file" for kind in counts if counts[kind]}
    order = sorted(nouns, key=lambda kind: (-counts[kind], kind))
    words = [f"{counts[kind]:,} {nouns[kind]}{'s' * (counts[kind] > 1)}" for kind in order]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
