"""Files that a reader once failed on; they are tested, and fuzzing starts from them."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz import readers
from tests.fuzz.damage import tarred, update_digest

from noiseprop.files.checksum import add_checksum


@dataclass(frozen=True)
class Found:
    """File that a reader failed on, with the failure."""

    reader: str
    data: bytes
    says: str


def _changed(data: bytes, change: Callable[[Any], object]) -> bytes:
    value = json.loads(data)
    change(value)
    return json.dumps(add_checksum(value)).encode()


def _replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace bytes in lines of JSON, and correct the checksum of each line."""
    lines = data.replace(old, new).splitlines()
    return b"".join(json.dumps(add_checksum(json.loads(line))).encode() + b"\n" for line in lines)


def _state(old: bytes, new: bytes) -> bytes:
    """Replace bytes in the header or the tensors of a state, and correct the checksum of the header."""
    data = readers.state_seeds()[0]
    length = int.from_bytes(data[:8], "little")
    header, tensors = (part.replace(old, new) for part in (data[8 : 8 + length], data[8 + length :]))
    return update_digest(len(header).to_bytes(8, "little") + header + tensors)


_METRICS, _CONFIG = readers.metrics_seeds()[0], readers.config_seeds()[0]
_EVALUATION, _PARTIAL, _RECORD = readers.evaluation_seeds()[0], readers.partial_seeds()[0], readers.record_seeds()[0]
_ARRAY = readers.npy_seeds()[0]

FOUND = [
    Found(
        "tar",
        tarred(readers.tar_seeds()[0], Random(0), lambda raw: raw.replace(b"./b.bin\0", b".//b.bin")),
        "a member called `.//x` came out as `/x`, the check being of the name before",
    ),
    Found(
        "npy",
        _ARRAY.replace(b"3), }", b"3 , {"),
        "NumPy's reader of headers ended in errors of Python's parser; all of them are caught now",
    ),
    Found(
        "cache",
        readers.cache_entry(_ARRAY.replace(b"fortran_order", b"fortran_ordex")),
        "an entry whose header was damaged ended in a traceback, not in a new entry",
    ),
    Found(
        "state",
        _state(b"weights.0.exp_avg_sq", b"weights.0.exp_avg_sx"),
        "a missing field was a KeyError at the next step",
    ),
    Found("state", _state(b'sigma.0.step\\": 1', b'sigma.0.step\\": -1'), "a step of -1 was a division by zero"),
    Found(
        "state",
        _state(struct.pack("<f", 1), struct.pack("<f", -1e30)),
        "a step of -1e30 was an OverflowError at the next step",
    ),
    Found(
        "config",
        _changed(_CONFIG, lambda c: c["settings"]["recipe"].update(lr=10**400)),
        "a rate of 400 digits was an OverflowError",
    ),
    Found("metrics", _replaced(_METRICS, b"0.5", b"1" * 400), "a loss of 400 digits was an OverflowError"),
    Found(
        "evaluation",
        _changed(_EVALUATION, lambda e: e["findings"][0]["numbers"].update(difference=10**400)),
        "a number of 400 digits was an OverflowError",
    ),
    Found(
        "partial",
        _replaced(b"\n".join(_PARTIAL.split(b"\n")[:2]), b'"clean", "found"', b'"noise", "found"'),
        "figures in a check's place were a TypeError",
    ),
    Found(
        "figure4",
        _replaced(readers.figure_seeds()[0], b"0.75", b"1e308"),
        "a share of 1e308 was an OverflowError in its standard deviation",
    ),
    Found("figure4", b'{"format": "noiseprop saliency"}', "a record without its figures was a KeyError"),
    Found(
        "curve",
        _replaced(readers.curve_seeds()[0], b"0.25", b"1" * 400),
        "an accuracy of 400 digits was an OverflowError",
    ),
    Found("record", _changed(_RECORD, lambda r: r.pop("data")), "a record without its data was a KeyError"),
    Found(
        "record",
        _changed(_RECORD, lambda r: r["runs"][0]["scores"].append(["clean", "off", 0, 0, 1])),
        "a figure cut short was a ValueError",
    ),
    Found(
        "record",
        _changed(readers.record_seeds()[2], lambda r: r.pop("trust_images")),
        "a table of ResNets without the images of its checks was a KeyError",
    ),
]
