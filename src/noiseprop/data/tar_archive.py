"""The plain files of a small tar archive that is already in memory.

Python's tarfile parses extended headers (PEP 721 filters come after that), and hostile ones have made it loop without
end (CVE-2019-20907, CVE-2025-8194) or for minutes (CVE-2024-6232). An archive of a few plain files needs none of that.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from noiseprop.errors import DataError
from noiseprop.files.bounded import check_member

BLOCK = 512
MOST_MEMBERS = 64
_OCTAL = re.compile(rb"[ \0]*([0-7]{1,12})[ \0]*")


def plain_files(raw: bytes, path: Path) -> Iterator[tuple[str, memoryview]]:
    """Walk through a tar archive; nothing is extracted, and folders, links and extended headers are passed over.

    Args:
        raw: the unpacked archive.
        path: where it came from, for the errors.

    Returns:
        An iterator over (name, content); the content is a view of `raw`.

    Raises:
        DataError: a header is damaged, a member is cut short, a name climbs out of the archive, or there are more than
            64 members.
    """
    view = memoryview(raw)
    position = 0
    for _ in range(MOST_MEMBERS):
        header = raw[position : position + BLOCK]
        if header.count(0) == BLOCK:
            return  # a block of zeros ends the archive
        size = _number(header[124:136])
        if len(header) < BLOCK or size is None or _number(header[148:156]) != _checksum(header):
            raise DataError(f"{path}: the tar header at byte {position:,} is damaged; get the official archive again")
        name = header[:100].split(b"\0", 1)[0].decode("ascii", "backslashreplace").removeprefix("./") or "."
        check_member(name, path)
        start, end = position + BLOCK, position + BLOCK + size
        if end > len(raw):
            raise DataError(f"{path}: ends within {name!r}; get the official archive again")
        if header[156:157] in (b"0", b"\0"):  # a plain file
            yield name, view[start:end]
        position = end + -size % BLOCK
    raise DataError(f"{path}: holds more than {MOST_MEMBERS} members; get the official archive again")


def _number(field: bytes) -> int | None:
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else None


def _checksum(header: bytes) -> int:
    """The sum of a header's bytes, its own checksum's eight taken as spaces."""
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")
