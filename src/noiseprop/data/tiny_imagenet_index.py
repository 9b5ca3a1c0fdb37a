"""List of the images, classes and boxes in a Tiny-ImageNet archive, made without decoding an image."""

import re
from collections import defaultdict
from dataclasses import dataclass

from noiseprop.data.archives import ZipArchive
from noiseprop.errors import DataError

IMAGE_SIDE = 64
MAX_ARCHIVE_CLASSES, MAX_ARCHIVE_IMAGES = 1_000, 200_000
MAX_LIST_BYTES = 8_000_000
NO_BOX = [-1, -1, -1, -1]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ArchiveListing:
    """Labelled images of an archive: training images by class and name, then validation images by name.

    Attributes:
        classes: WordNet ids in alphabetic order.
        members: names of the images in the archive.
        labels: indices into `classes`.
        boxes: x0, y0, x1, y1 in pixels, both ends inside the box; four times -1 without a box.
        training: number of training images, which come first.
    """

    classes: list[str]
    members: list[str]
    labels: list[int]
    boxes: list[list[int]]
    training: int


def list_images(archive: ZipArchive) -> ArchiveListing:
    """List the training and validation images of an archive.

    Raises:
        DataError: the archive has no `wnids.txt` or several, a class without images, images of unlisted classes,
            damaged lists, or too many images.
    """
    top = _find_top_folder(archive)
    classes = _read_classes(archive, top)
    training = _list_training_images(archive, top, classes)
    validation = sorted(name for name in archive.members if _is_image(name, f"{top}val/images/"))
    count = len(validation) + sum(map(len, training.values()))
    if count > MAX_ARCHIVE_IMAGES:
        raise DataError(
            f"{archive.path}: holds {count:,} labelled images, expected at most {MAX_ARCHIVE_IMAGES:,}; leave some out"
        )
    listing = ArchiveListing(classes, [], [], [], count - len(validation))
    for label, wnid in enumerate(classes):
        boxes = _read_training_boxes(archive, f"{top}train/{wnid}/{wnid}_boxes.txt")
        for member in training[wnid]:
            _append_image(listing, member, label, boxes.get(_get_file_name(member), NO_BOX))
    annotations = _read_annotations(archive, f"{top}val/val_annotations.txt", classes) if validation else {}
    for member in validation:
        if _get_file_name(member) not in annotations:
            raise DataError(f"{archive.path}: val_annotations.txt has no line for {member}; get the official archive")
        _append_image(listing, member, *annotations[_get_file_name(member)])
    return listing


def _find_top_folder(archive: ZipArchive) -> str:
    """Return the folder that holds `wnids.txt` with its slash, "tiny-imagenet-200/" in the official archive."""
    found = [name for name in archive.members if name.rsplit("/", 1)[-1] == "wnids.txt"]
    if len(found) != 1:
        raise DataError(f"{archive.path}: {len(found)} files wnids.txt in it, expected 1; get the official archive")
    return found[0].removesuffix("wnids.txt")


def _read_classes(archive: ZipArchive, top: str) -> list[str]:
    wnids = _read_lines(archive, f"{top}wnids.txt")
    for wnid in wnids:
        if not _NAME.fullmatch(wnid):
            raise DataError(
                f"{archive.path}: wnids.txt has {wnid[:80]!r}, which cannot be a class; get the official archive"
            )
    if not 0 < len(set(wnids)) == len(wnids) <= MAX_ARCHIVE_CLASSES:
        raise DataError(
            f"{archive.path}: wnids.txt has {len(wnids):,} lines, {len(set(wnids)):,} of them different, expected 1 to "
            f"{MAX_ARCHIVE_CLASSES:,} classes; get the official archive"
        )
    return sorted(wnids)


def _list_training_images(archive: ZipArchive, top: str, classes: list[str]) -> dict[str, list[str]]:
    """Return the names of the training images by class, sorted; every class has at least one."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in archive.members:
        wnid, slash, _ = name.removeprefix(f"{top}train/").partition("/")
        if name.startswith(f"{top}train/") and slash:  # files beside the class folders are skipped
            images = by_class[wnid]
            if _is_image(name, f"{top}train/{wnid}/images/"):
                images.append(name)
    empty = [wnid for wnid in {**dict.fromkeys(classes), **by_class} if not by_class.get(wnid)]
    if empty:
        raise DataError(f"{archive.path}: class {empty[0]} has no training images; get the official archive")
    unlisted = sorted(set(by_class) - set(classes))
    if unlisted:
        raise DataError(f"{archive.path}: train/{unlisted[0]} is not a class of wnids.txt; get the official archive")
    return {wnid: sorted(names) for wnid, names in by_class.items()}


def _read_training_boxes(archive: ZipArchive, member: str) -> dict[str, list[int]]:
    """Read the boxes of a class by file name, from lines "NAME x0 y0 x1 y1"; empty without such a list."""
    if member not in archive.members:
        return {}
    boxes: dict[str, list[int]] = {}
    for line in _read_lines(archive, member):
        name, *numbers = line.split()
        boxes[name] = _parse_box(numbers, archive, member)
    return boxes


def _read_annotations(archive: ZipArchive, member: str, classes: list[str]) -> dict[str, tuple[int, list[int]]]:
    """Read labels and boxes of the validation images by file name, from lines "NAME WNID x0 y0 x1 y1"."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    found: dict[str, tuple[int, list[int]]] = {}
    for line in _read_lines(archive, member):
        name, *fields = line.split()
        if not fields or fields[0] not in labels:
            raise DataError(
                f"{archive.path}: {member} has the line {line[:80]!r}, whose class is not in wnids.txt; "
                "get the official archive again"
            )
        found[name] = labels[fields[0]], _parse_box(fields[1:], archive, member)
    return found


def _parse_box(numbers: list[str], archive: ZipArchive, member: str) -> list[int]:
    if len(numbers) == 4 and all(re.fullmatch("[0-9]{1,2}", number) for number in numbers):
        x0, y0, x1, y1 = map(int, numbers)
        if x0 <= x1 < IMAGE_SIDE and y0 <= y1 < IMAGE_SIDE:
            return [x0, y0, x1, y1]
    raise DataError(
        f"{archive.path}: {member} has the box {' '.join(numbers)[:80]!r}, expected x0 y0 x1 y1 from 0 to "
        f"{IMAGE_SIDE - 1}; get the official archive again"
    )


def _append_image(listing: ArchiveListing, member: str, label: int, box: list[int]) -> None:
    listing.members.append(member)
    listing.labels.append(label)
    listing.boxes.append(box)


def _read_lines(archive: ZipArchive, member: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        text = archive.read(member, MAX_LIST_BYTES).decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{archive.path}: {member} is not plain text; get the official archive again") from error
    return [line for line in text.splitlines() if line.strip()]


def _is_image(name: str, folder: str) -> bool:
    return name.startswith(folder) and name.endswith(".JPEG") and "/" not in name.removeprefix(folder)


def _get_file_name(member: str) -> str:
    return member.rsplit("/", 1)[-1]
