"""A zip archive from a stranger, read without extracting: every size is bounded before it is believed."""

import io
import struct
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from noiseprop.errors import DataError
from noiseprop.files.bounded import check_member

MOST_PACKED = 1_000_000_000  # bytes of an archive
MOST_DIRECTORY = 32_000_000  # bytes of its list of members; Tiny-ImageNet's has about 14 million
MOST_MEMBERS = 250_000  # Tiny-ImageNet has about 120,600
DAMAGE = (  # what zipfile raises when it meets a damaged archive
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class _Bounded(io.FileIO):
    """A file of which zipfile can be made to ask for at most `MOST_DIRECTORY` bytes at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = MOST_DIRECTORY
        if size > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"a piece of {size:,} bytes is larger than {MOST_DIRECTORY:,}")
        piece = super().read(size) or b""
        if piece.count(b"PK\1\2") > MOST_MEMBERS:  # zipfile would make an object of each before anyone can count them
            raise zipfile.BadZipFile(f"more than {MOST_MEMBERS:,} members")
        return piece


class Archive:
    """The members of a zip archive by name.

    Attributes:
        path: the archive.
        members: name: its entry, in the archive's order; folders end in `/`.
    """

    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        self.path = path
        self._file = file
        self.members: dict[str, zipfile.ZipInfo] = {}
        for entry in file.infolist():
            check_member(entry.filename, path)
            if entry.filename in self.members:
                raise DataError(f"{path}: has two members {entry.filename!r}; get the official archive again")
            self.members[entry.filename] = entry

    def read(self, name: str, most: int) -> bytes:
        """A member's content, its CRC checked.

        Raises:
            DataError: there is no such member, it is larger than `most` bytes, encrypted, damaged or packed in a way
                other than stored or deflated.
        """
        entry = self.members.get(name)
        if entry is None:
            raise DataError(f"{self.path}: has no {name}; get the official archive again")
        if entry.file_size > most:
            raise DataError(
                f"{self.path}: {name} is said to unpack to {entry.file_size:,} bytes, expected at most {most:,}; "
                "get the official archive again"
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise DataError(f"{self.path}: {name} is encrypted or packed in an unusual way; get the official archive")
        try:
            with self._file.open(entry) as member:
                return member.read(entry.file_size + 1)  # with no size it would unpack a bomb before cutting it
        except (*DAMAGE, OSError) as error:  # OSError: an offset before the file's start
            raise DataError(f"{self.path}: {name} is damaged ({error}); get the official archive again") from error


@contextmanager
def open_archive(path: Path) -> Generator[Archive]:
    """Open a zip archive.

    Raises:
        DataError: it cannot be read, is no zip archive or a damaged one, or its names repeat or climb out of it.
    """
    try:
        with _Bounded(path) as file:
            if file.seek(0, io.SEEK_END) > MOST_PACKED:
                raise DataError(
                    f"{path}: larger than the {MOST_PACKED:,} bytes that it may have; get the official archive again"
                )
            try:
                archive = zipfile.ZipFile(file)
            except DAMAGE as error:
                raise DataError(f"{path}: no sound zip archive ({error}); get the official archive again") from error
            with archive:
                yield Archive(archive, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); get the official archive again"
        ) from error
