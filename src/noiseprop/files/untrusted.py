"""Bounded reading of untrusted files: bytes, gzip, text, JSON and tensors, whatever sizes they declare.

Readers of data files raise a DataError that names the file and the next step. Readers of text, JSON and tensors raise a
ValueError; the caller knows the purpose of the file and names the next step.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from noiseprop.errors import DataError

MAX_TEXT_BYTES = 32 * 2**20
MAX_JSON_VALUES = 1_000_000  # the largest record in results/ has about 20,000
MAX_JSON_DEPTH = 16
MAX_TENSORS_HEADER = 2**24  # bytes of a safetensors header; a tensor takes about 100
_MAX_NUMBER_LENGTH = 64  # characters
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # surrogates, too; not tab, line feed


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        DataError: the file is missing, not regular, unreadable or larger than `limit`.
    """
    try:
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; put the official file there, or name another folder with --data-dir"
            )
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise DataError(f"{path}: larger than the limit of {limit:,} bytes; get the official file again")
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def decompress_gzip(data: bytes, limit: int, path: Path) -> bytes:
    """Decompress one gzip stream to at most `limit` bytes and verify its CRC.

    Args:
        data: the compressed bytes, one gzip member.
        limit: the largest size of the decompressed stream; memory stays within a small multiple of it.
        path: the file that the bytes came from, for the error message.

    Raises:
        DataError: the stream is not gzip, damaged, truncated, too long or followed by other bytes.
    """
    stream = zlib.decompressobj(wbits=31)  # 31: requires a gzip header and trailer
    try:
        raw = stream.decompress(data, limit + 1)  # one more than allowed, so that a full stream reaches its end
    except zlib.error as error:
        raise DataError(f"{path}: not a valid gzip file ({error}); get the official file again") from error
    if len(raw) > limit:
        raise DataError(f"{path}: unpacks to more than {limit:,} bytes; get the official file again")
    if not stream.eof:
        raise DataError(f"{path}: ends before its gzip stream does; get the official file again")
    if stream.unused_data:
        raise DataError(
            f"{path}: {len(stream.unused_data):,} bytes follow its gzip stream; get the official file again"
        )
    return raw


def read_text(path: Path) -> str:
    """Read a regular file of at most `MAX_TEXT_BYTES` bytes of UTF-8.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not regular, too large, or not UTF-8.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"{size:,} bytes, expected at most {MAX_TEXT_BYTES:,}")
        file.seek(0)
        return file.read(size).decode("utf-8")


def read_json(path: Path) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        OSError: as for `read_text`.
        ValueError: as for `read_text` and `parse_json`.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text whose numbers fit 64 bits and whose strings are safe to print.

    Raises:
        ValueError: the text is not JSON; it has more than `MAX_JSON_VALUES` values or nests deeper than
            `MAX_JSON_DEPTH`; a number is NaN, infinite, or not a 64-bit integer; or a string has control characters
            or half a character.

    >>> parse_json('{"epochs": 3, "lr": 1e-3}')
    {'epochs': 3, 'lr': 0.001}
    >>> parse_json('{"lr": 1e999}')
    Traceback (most recent call last):
    ValueError: 1e999 is not a finite number
    """
    values = text.count(",") + text.count("[") + text.count("{")
    if values > MAX_JSON_VALUES:
        raise ValueError(f"about {values:,} values, expected at most {MAX_JSON_VALUES:,}")
    try:
        value = json.loads(text, parse_float=_parse_float, parse_constant=_parse_float, parse_int=_parse_int)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}") from error
    _check_json_value(value)
    return value


@contextmanager
def open_tensors(path: Path) -> Generator[Any]:
    """Open a safetensors file, mapped into memory; errors in the `with` block become errors of this function.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not regular, its header is larger than `MAX_TENSORS_HEADER`, or it is damaged.
    """
    check_regular(path)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MAX_TENSORS_HEADER:
        raise ValueError(f"a header of {header:,} bytes, expected at most {MAX_TENSORS_HEADER:,}")
    try:
        with safe_open(path, "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def check_regular(path: Path) -> None:
    """Raise a ValueError if a path exists and is not a regular file: a pipe would block, a device never end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")


def has_control_characters(text: str) -> bool:
    r"""Return whether a text has characters that `parse_json` rejects, a tab or a line feed.

    Names of files whose bytes are not UTF-8 have them (surrogates), too.

    >>> has_control_characters("photos/café"), has_control_characters("photos\n"), has_control_characters("\udcff")
    (False, True, True)
    """
    return bool(_CONTROL_CHARACTERS.search(text)) or "\t" in text or "\n" in text


def _check_json_value(value: Any) -> None:
    """Walk through a value level by level, so that its depth costs no stack."""
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        if any(isinstance(item, str) and _CONTROL_CHARACTERS.search(item) for item in level):
            raise ValueError("control characters or half a character in a text")
        level = [
            inner
            for item in level
            if isinstance(item, (list, dict))
            for inner in (item if isinstance(item, list) else (*item, *item.values()))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")


def _parse_float(text: str) -> float:
    value = float(text) if len(text) <= _MAX_NUMBER_LENGTH else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MAX_NUMBER_LENGTH]} is not a finite number")
    return value


def _parse_int(text: str) -> int:
    if len(text) > _MAX_NUMBER_LENGTH or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"{text[:_MAX_NUMBER_LENGTH]} is not an integer of 64 bits")
    return int(text)
