"""Bounded reading of files that may come from strangers: a declared size is never believed further than its limit."""

import os
import zlib
from pathlib import Path

from noiseprop.errors import DataError


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        DataError: the file is missing, no regular file, unreadable or larger than `limit`.
    """
    try:
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; put the official file there, or name another folder with --data-dir"
            )
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise DataError(
                    f"{path}: larger than the {limit:,} bytes that it may have; get the official file again"
                )
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def gunzip(data: bytes, limit: int, path: Path) -> bytes:
    """Unpack one gzip stream to at most `limit` bytes; its CRC is checked.

    Args:
        data: the packed bytes, one gzip member.
        limit: the most bytes that the unpacked stream may have; memory stays within a small multiple of it.
        path: where the bytes came from, for the error.

    Raises:
        DataError: the stream is no gzip, damaged, cut short, too long or followed by something else.
    """
    stream = zlib.decompressobj(wbits=31)  # 31: a gzip header and trailer are required
    try:
        unpacked = stream.decompress(data, limit + 1)  # one more than may come, so that a full stream reaches its end
    except zlib.error as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); get the official file again") from error
    if len(unpacked) > limit:
        raise DataError(f"{path}: unpacks to more than {limit:,} bytes; get the official file again")
    if not stream.eof:
        raise DataError(f"{path}: ends before its gzip stream does; get the official file again")
    if stream.unused_data:
        raise DataError(
            f"{path}: {len(stream.unused_data):,} bytes follow its gzip stream; get the official file again"
        )
    return unpacked


def check_member(name: str, path: Path) -> None:
    """Refuse an archive one of whose members would climb out of the folder it is unpacked into.

    noiseprop never unpacks archives into folders; such a name shows that this one was tampered with.

    Raises:
        DataError: the name is absolute, or has a `..` in it.
    """
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise DataError(f"{path}: its member {name!r} climbs out of the archive; get the official archive")
