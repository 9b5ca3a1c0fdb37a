"""Typed records in JSON files: a `msgspec.Struct` with a checksum, written atomically and validated when read.

Every field is checked against the type that the struct declares, including its bounds (`msgspec.Meta`). Files are read
with the limits of `noiseprop.files.untrusted`. Errors of content are a ValueError here; the caller knows the purpose
of the file and names the next step.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import add_checksum, verify_checksum
from noiseprop.files.untrusted import parse_json, read_text

Record = TypeVar("Record", bound=msgspec.Struct)


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Write a record as indented JSON with a checksum; `path` never holds a partial file.

    Raises:
        RunError: the file cannot be written.
        ValueError: a number is NaN or infinite.
    """
    text = format_record(record, indent=2) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read_record(path: Path, kind: type[Record]) -> Record:
    """Read a record that `write_record` wrote.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is too large, is not JSON, its checksum does not match, or it is not a valid `kind`.
    """
    return parse_record(read_text(path), kind)


def format_record(record: msgspec.Struct, *, indent: int | None = None) -> str:
    """Return a record as JSON text with a checksum; one line unless `indent` is given."""
    document: Any = msgspec.to_builtins(record, str_keys=True)
    return json.dumps(add_checksum(document), indent=indent, allow_nan=False)


def parse_record(text: str, kind: type[Record]) -> Record:
    """Return the record that a JSON text with a checksum holds.

    Raises:
        ValueError: as for `read_record`.
    """
    document = parse_json(text)
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")  # noqa: TRY004
    return convert_record(verify_checksum(document), kind)


def flatten_document(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted names.

    >>> flatten_document({"recipe": {"lr": 0.1}, "seed": 0})
    {'recipe.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten_document(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def convert_record(document: Any, kind: type[Record]) -> Record:
    """Validate a parsed JSON value as a record.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of bounds; the message names its path.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
