"""Bounded readers of untrusted tar and zip archives; nothing is ever extracted to disk.

Every declared size has a limit before memory is allocated for it. Tar archives are parsed here: the extended headers
that Python's tarfile parses have made it loop without end (CVE-2019-20907, CVE-2025-8194) or for minutes
(CVE-2024-6232), and an archive of a few plain files needs none of them.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from noiseprop.errors import DataError

TAR_BLOCK = 512  # bytes
MAX_TAR_MEMBERS = 64
MAX_ARCHIVE_BYTES = 1_000_000_000  # of a zip archive
MAX_DIRECTORY_BYTES = 32_000_000  # of its list of members; Tiny-ImageNet's has about 14 million
MAX_ZIP_MEMBERS = 250_000  # Tiny-ImageNet has about 120,600
_OCTAL = re.compile(rb"[ \0]*([0-7]{1,12})[ \0]*")
_ZIP_ERRORS = (  # what zipfile raises for damaged archives
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, OverflowError, RuntimeError, ValueError),
)


def iterate_tar_files(raw: bytes, path: Path) -> Iterator[tuple[str, memoryview]]:
    """Yield the plain files of a small tar archive; folders, links and extended headers are skipped.

    Args:
        raw: the decompressed archive.
        path: the file that it came from, for the error message.

    Yields:
        (name, content); the content is a view of `raw`.

    Raises:
        DataError: a header is damaged, a member is truncated, a name leaves the archive, or there are more than 64
            members.
    """
    view = memoryview(raw)
    position = 0
    for _ in range(MAX_TAR_MEMBERS):
        header = raw[position : position + TAR_BLOCK]
        if header.count(0) == TAR_BLOCK:
            return  # a block of zeros ends the archive
        size = _parse_octal(header[124:136])
        if len(header) < TAR_BLOCK or size is None or _parse_octal(header[148:156]) != _sum_tar_header(header):
            raise DataError(f"{path}: the tar header at byte {position:,} is damaged; get the official archive again")
        name = header[:100].split(b"\0", 1)[0].decode("ascii", "backslashreplace").removeprefix("./") or "."
        _check_member_name(name, path)
        start, end = position + TAR_BLOCK, position + TAR_BLOCK + size
        if end > len(raw):
            raise DataError(f"{path}: ends within {name!r}; get the official archive again")
        if header[156:157] in (b"0", b"\0"):  # a plain file
            yield name, view[start:end]
        position = end + -size % TAR_BLOCK
    raise DataError(f"{path}: holds more than {MAX_TAR_MEMBERS} members; get the official archive again")


def _parse_octal(field: bytes) -> int | None:
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else None


def _sum_tar_header(header: bytes) -> int:
    """Sum the bytes of a tar header, with spaces in place of the eight bytes of its checksum."""
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


@contextmanager
def open_zip(path: Path, *, advice: str = "get the official archive again") -> "Generator[ZipArchive]":
    """Open a zip archive; errors end in `advice`.

    Raises:
        DataError: the file cannot be read, is not a valid zip archive, or its names repeat or leave the archive.
    """
    try:
        with _BoundedFile(path) as file:
            if file.seek(0, io.SEEK_END) > MAX_ARCHIVE_BYTES:
                raise DataError(f"{path}: larger than the limit of {MAX_ARCHIVE_BYTES:,} bytes; {advice}")
            try:
                archive = zipfile.ZipFile(file)
            except _ZIP_ERRORS as error:
                raise DataError(f"{path}: not a valid zip archive ({error}); {advice}") from error
            with archive:
                yield ZipArchive(archive, path, advice)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from error


class ZipArchive:
    """Members of a zip archive by name.

    Attributes:
        path: the archive.
        members: entries by name, in the archive's order; names of folders end in `/`.
    """

    def __init__(self, file: zipfile.ZipFile, path: Path, advice: str) -> None:
        self.path = path
        self._file = file
        self._advice = advice
        self.members: dict[str, zipfile.ZipInfo] = {}
        for entry in file.infolist():
            _check_member_name(entry.filename, path)
            if entry.filename in self.members:
                raise DataError(f"{path}: has two members {entry.filename!r}; {advice}")
            self.members[entry.filename] = entry

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a member after checking its CRC.

        Raises:
            DataError: the member is missing, larger than `limit` bytes, encrypted, damaged or neither stored nor
                deflated.
        """
        entry = self.members.get(name)
        if entry is None:
            raise DataError(f"{self.path}: has no {name}; {self._advice}")
        if entry.file_size > limit:
            raise DataError(
                f"{self.path}: {name} declares {entry.file_size:,} bytes, expected at most {limit:,}; {self._advice}"
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise DataError(f"{self.path}: {name} is encrypted or packed in an unusual way; {self._advice}")
        try:
            with self._file.open(entry) as member:
                return member.read(entry.file_size + 1)  # without a size, a bomb would be unpacked before it is cut
        except (*_ZIP_ERRORS, OSError) as error:  # OSError: an offset before the file's start
            raise DataError(f"{self.path}: {name} is damaged ({error}); {self._advice}") from error


class _BoundedFile(io.FileIO):
    """File that gives zipfile at most `MAX_DIRECTORY_BYTES` bytes at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = MAX_DIRECTORY_BYTES
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a piece of {size:,} bytes is larger than {MAX_DIRECTORY_BYTES:,}")
        piece = super().read(size) or b""
        if piece.count(b"PK\1\2") > MAX_ZIP_MEMBERS:  # zipfile would make an object of each before they are counted
            raise zipfile.BadZipFile(f"more than {MAX_ZIP_MEMBERS:,} members")
        return piece


def _check_member_name(name: str, path: Path) -> None:
    """Raise an error for a name that leaves the folder an archive is unpacked into, a sign of tampering."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise DataError(f"{path}: its member {name!r} climbs out of the archive; get the official archive")
