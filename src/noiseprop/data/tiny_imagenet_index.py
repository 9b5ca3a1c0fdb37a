"""Which images a Tiny-ImageNet archive holds, of which classes and with which boxes; decodes none of them."""

import re
from collections import defaultdict
from dataclasses import dataclass

from noiseprop.data.zip_archive import Archive
from noiseprop.errors import DataError

SIDE = 64
MOST_CLASSES, MOST_IMAGES = 1_000, 200_000
MOST_TEXT = 8_000_000  # bytes of a list of images
NO_BOX = [-1, -1, -1, -1]
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Listing:
    """The labelled images of an archive: training images by class and name, then validation images by name.

    Attributes:
        classes: WordNet ids in alphabetic order.
        members: the images' names in the archive.
        labels: indices into `classes`.
        boxes: x0, y0, x1, y1 in pixels, both ends inside the box; four times -1 where there is none.
        training: how many of the images, from the front, are training images.
    """

    classes: list[str]
    members: list[str]
    labels: list[int]
    boxes: list[list[int]]
    training: int


def list_images(archive: Archive) -> Listing:
    """List an archive's training and validation images.

    Raises:
        DataError: the archive has no or several `wnids.txt`, a class without images, images of unlisted classes,
            damaged lists, or too many images.
    """
    top = _top_folder(archive)
    classes = _classes(archive, top)
    training = _training_images(archive, top, classes)
    validation = sorted(name for name in archive.members if _is_image(name, f"{top}val/images/"))
    count = len(validation) + sum(map(len, training.values()))
    if count > MOST_IMAGES:
        raise DataError(
            f"{archive.path}: holds {count:,} labelled images, expected at most {MOST_IMAGES:,}; leave some out"
        )
    listing = Listing(classes, [], [], [], count - len(validation))
    for label, wnid in enumerate(classes):
        boxes = _training_boxes(archive, f"{top}train/{wnid}/{wnid}_boxes.txt")
        for member in training[wnid]:
            _append(listing, member, label, boxes.get(_file_name(member), NO_BOX))
    annotations = _annotations(archive, f"{top}val/val_annotations.txt", classes) if validation else {}
    for member in validation:
        if _file_name(member) not in annotations:
            raise DataError(f"{archive.path}: val_annotations.txt has no line for {member}; get the official archive")
        _append(listing, member, *annotations[_file_name(member)])
    return listing


def _top_folder(archive: Archive) -> str:
    """The folder that holds `wnids.txt`, with its slash: "tiny-imagenet-200/" in the official archive."""
    found = [name for name in archive.members if name.rsplit("/", 1)[-1] == "wnids.txt"]
    if len(found) != 1:
        raise DataError(f"{archive.path}: {len(found)} files wnids.txt in it, expected 1; get the official archive")
    return found[0].removesuffix("wnids.txt")


def _classes(archive: Archive, top: str) -> list[str]:
    wnids = _lines(archive, f"{top}wnids.txt")
    for wnid in wnids:
        if not _NAME.fullmatch(wnid):
            raise DataError(
                f"{archive.path}: wnids.txt has {wnid[:80]!r}, which names no class; get the official archive"
            )
    if not 0 < len(set(wnids)) == len(wnids) <= MOST_CLASSES:
        raise DataError(
            f"{archive.path}: wnids.txt has {len(wnids):,} lines, {len(set(wnids)):,} of them different, expected 1 to "
            f"{MOST_CLASSES:,} classes; get the official archive"
        )
    return sorted(wnids)


def _training_images(archive: Archive, top: str, classes: list[str]) -> dict[str, list[str]]:
    """The training images' names by class, each list sorted; every class has at least one."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in archive.members:
        wnid, slash, _ = name.removeprefix(f"{top}train/").partition("/")
        if name.startswith(f"{top}train/") and slash:  # a file beside the classes' folders is passed over
            images = by_class[wnid]
            if _is_image(name, f"{top}train/{wnid}/images/"):
                images.append(name)
    empty = [wnid for wnid in {**dict.fromkeys(classes), **by_class} if not by_class.get(wnid)]
    if empty:
        raise DataError(f"{archive.path}: class {empty[0]} has no training images; get the official archive")
    unlisted = sorted(set(by_class) - set(classes))
    if unlisted:
        raise DataError(f"{archive.path}: train/{unlisted[0]} is no class of wnids.txt; get the official archive")
    return {wnid: sorted(names) for wnid, names in by_class.items()}


def _training_boxes(archive: Archive, member: str) -> dict[str, list[int]]:
    """The boxes of a class's training images by file name: lines "NAME x0 y0 x1 y1"; empty where there is no list."""
    if member not in archive.members:
        return {}
    boxes: dict[str, list[int]] = {}
    for line in _lines(archive, member):
        name, *numbers = line.split()
        boxes[name] = _box(numbers, archive, member)
    return boxes


def _annotations(archive: Archive, member: str, classes: list[str]) -> dict[str, tuple[int, list[int]]]:
    """The validation images' labels and boxes by file name: lines "NAME WNID x0 y0 x1 y1"."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    found: dict[str, tuple[int, list[int]]] = {}
    for line in _lines(archive, member):
        name, *fields = line.split()
        if not fields or fields[0] not in labels:
            raise DataError(
                f"{archive.path}: {member} says {line[:80]!r}, whose class is not in wnids.txt; get the archive again"
            )
        found[name] = labels[fields[0]], _box(fields[1:], archive, member)
    return found


def _box(numbers: list[str], archive: Archive, member: str) -> list[int]:
    if len(numbers) == 4 and all(re.fullmatch("[0-9]{1,2}", number) for number in numbers):
        x0, y0, x1, y1 = map(int, numbers)
        if x0 <= x1 < SIDE and y0 <= y1 < SIDE:
            return [x0, y0, x1, y1]
    raise DataError(
        f"{archive.path}: {member} has the box {' '.join(numbers)[:80]!r}, expected x0 y0 x1 y1 from 0 to {SIDE - 1}; "
        "get the official archive again"
    )


def _append(listing: Listing, member: str, label: int, box: list[int]) -> None:
    listing.members.append(member)
    listing.labels.append(label)
    listing.boxes.append(box)


def _lines(archive: Archive, member: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = archive.read(member, MOST_TEXT).decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{archive.path}: {member} is no plain text; get the official archive again") from error
    return [line for line in text.splitlines() if line.strip()]


def _is_image(name: str, folder: str) -> bool:
    return name.startswith(folder) and name.endswith(".JPEG") and "/" not in name.removeprefix(folder)


def _file_name(member: str) -> str:
    return member.rsplit("/", 1)[-1]
