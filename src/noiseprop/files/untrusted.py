"""Files that may come from strangers: text, JSON and tensors, whose declared sizes are not believed.

What is wrong with a file is a ValueError here; the caller knows what the file is for, and says what to do next.
"""

import json
import math
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

MOST_BYTES = 32 * 2**20  # of a file of text
MOST_VALUES = 1_000_000  # of a JSON text; the largest record in results/ has about 20,000
MOST_DEPTH = 16
MOST_HEADER = 2**24  # bytes of a safetensors header; a tensor takes about 100
_LONGEST_NUMBER = 64  # characters
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and line feed; half pairs


def read_text(path: Path) -> str:
    """The content of a regular file of at most `MOST_BYTES` bytes of UTF-8.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device be endless
        raise ValueError("no regular file")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes, expected at most {MOST_BYTES:,}")
        file.seek(0)
        return file.read(size).decode("utf-8")


def read_json(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        OSError: as for `read_text`.
        ValueError: as for `read_text` and `parse_json`.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The value of a JSON text, none of whose numbers overflows a float and none of whose texts upsets a terminal.

    Raises:
        ValueError: it is no JSON; it has more than `MOST_VALUES` values, or lists in lists deeper than `MOST_DEPTH`; a
            number is NaN, infinite, or no 64-bit integer; or a text has control characters or half a character.

    >>> parse_json('{"epochs": 3, "lr": 1e-3}')
    {'epochs': 3, 'lr': 0.001}
    >>> parse_json('{"lr": 1e999}')
    Traceback (most recent call last):
    ValueError: 1e999 is no finite number
    """
    values = text.count(",") + text.count("[") + text.count("{")
    if values > MOST_VALUES:
        raise ValueError(f"about {values:,} values, expected at most {MOST_VALUES:,}")
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite, parse_int=_whole)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MOST_DEPTH}") from error
    _check(value)
    return value


@contextmanager
def open_tensors(path: Path) -> Generator[Any]:
    """A safetensors file, mapped into memory; errors while it is open are told as this function's.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, its header is larger than `MOST_HEADER`, or it is damaged.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MOST_HEADER:
        raise ValueError(f"a header of {header:,} bytes, expected at most {MOST_HEADER:,}")
    try:
        with safe_open(path, "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _check(value: Any) -> None:
    """Walk through a value level by level, so that its depth costs no stack."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH + 1):
        if any(isinstance(item, str) and _UNPRINTABLE.search(item) for item in level):
            raise ValueError("control characters or half a character in a text")
        level = [
            inner
            for item in level
            if isinstance(item, (list, dict))
            for inner in (item if isinstance(item, list) else (*item, *item.values()))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MOST_DEPTH}")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= _LONGEST_NUMBER else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text[:_LONGEST_NUMBER]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"{text[:_LONGEST_NUMBER]} is no integer of 64 bits")
    return int(text)
