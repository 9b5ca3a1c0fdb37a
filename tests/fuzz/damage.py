"""Damage behind checksums, lengths and compression: change the inside of a file, then correct the outside.

Each function takes the bytes of a file, a source of randomness, and a function that changes plain bytes, such as those
of atheris and Hypothesis.
"""

import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from noiseprop.files.checksum import add_checksum, hash_tensors

Edit = Callable[[bytes], bytes]
Damage = Callable[[bytes, Random, Edit], bytes]

SEAM = b"\n--seam--\n"  # between the files of a reader that reads two
ODD = [None, True, 0, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, 5e-324, float("nan"), float("inf"), "", "0"]
ODD += ["\x1b[2J", "\ud800", "../../etc/passwd", "<script>", "9" * 5000, [], {}, [[]], {"": None}, [0] * 50]


def plain(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change any bytes."""
    return edit(data)


def gzipped(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change the stream inside a gzip file."""
    try:
        inner = zlib.decompress(data, wbits=31)
    except zlib.error:
        return edit(data)
    return gzip.compress(edit(inner), 1, mtime=0)


def tarred(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change a tar archive and correct the checksums of headers that stayed in place."""
    raw = bytearray(edit(data))
    for start in range(0, len(raw) - 511, 512):
        if raw[start + 257 : start + 262] == b"ustar":
            header = raw[start : start + 512]
            total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
            raw[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(raw)


def zipped(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change a stored member of a zip archive with its CRC, a field of a header, or any bytes."""
    raw = bytearray(data)
    starts = [i for i in range(len(raw) - 46) if raw[i : i + 4] == b"PK\x01\x02"]
    if not starts or rng.random() < 0.3:
        return edit(data)
    start = rng.choice(starts)
    if rng.random() < 0.5:  # versions, flags, method, sizes, lengths, offset; 0 and all ones among the values
        place, width = rng.choice([(8, 2), (10, 2), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)])
        value = rng.choice([0, 1, 8, 2 ** (8 * width) - 1, rng.randrange(2 ** (8 * width))])
        raw[start + place : start + place + width] = value.to_bytes(width, "little")
        return bytes(raw)
    packed, offset = struct.unpack_from("<I", raw, start + 20)[0], struct.unpack_from("<I", raw, start + 42)[0]
    if offset + 30 > len(raw) or packed > len(raw):
        return edit(data)
    names = sum(struct.unpack_from("<HH", raw, offset + 26))
    begin = offset + 30 + names
    content = edit(bytes(raw[begin : begin + packed]))[:packed].ljust(packed, b"\0")
    raw[begin : begin + packed] = content
    for place in (offset + 14, start + 16):
        raw[place : place + 4] = struct.pack("<I", zlib.crc32(content))
    return bytes(raw)


def checked(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change a PNG and correct the checksums of its chunks."""
    raw = bytearray(edit(data))
    start = 8
    while raw[:4] == b"\x89PNG" and start + 12 <= len(raw):
        length = int.from_bytes(raw[start : start + 4], "big")
        end = start + 8 + length
        if end + 4 > len(raw):
            break
        raw[end : end + 4] = struct.pack(">I", zlib.crc32(raw[start + 4 : end]))
        start = end + 4
    return bytes(raw)


def tree(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change one place of a JSON document, and mostly its checksum with it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return edit(data)
    return json.dumps(change_document(value, rng)).encode()


def lines(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change one place of one of several lines of JSON."""
    rows = data.split(b"\n")
    number = rng.randrange(len(rows))
    rows[number] = tree(rows[number], rng, edit)
    return b"\n".join(rows)


def header(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change one place of a safetensors header, or of a JSON text inside it."""
    length = int.from_bytes(data[:8], "little")
    try:
        value = json.loads(data[8 : 8 + length])
        texts = value["__metadata__"]
        name = rng.choice(list(texts))
        if rng.random() < 0.5:
            texts[name] = json.dumps(change_document(json.loads(texts[name]), rng))
        else:
            value = change_value(value, rng)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return edit(data)
    text = json.dumps(value).encode()
    return update_digest(len(text).to_bytes(8, "little") + text + data[8 + length :])


def update_digest(data: bytes) -> bytes:
    """Correct the digest of the tensors in the header of a checkpoint, and the checksum of the header."""
    length = int.from_bytes(data[:8], "little")
    try:
        value, tensors = json.loads(data[8 : 8 + length]), load(data)
        inner = json.loads(value["__metadata__"]["noiseprop"])
        inner["tensors"] = hash_tensors({name: tensors[name] for name in sorted(tensors)})
        value["__metadata__"]["noiseprop"] = json.dumps(add_checksum(inner))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return data
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def summed(data: bytes, rng: Random, edit: Edit) -> bytes:
    """Change the images or the index of a cache entry, which `SEAM` joins."""
    images, _, index = data.partition(SEAM)
    if rng.random() < 0.5:
        return edit(images) + SEAM + index
    _, _, what = index.partition(b"\n")
    what = tree(what, rng, edit)
    return images + SEAM + hashlib.sha256(images + what).hexdigest().encode() + b"\n" + what


def change_document(value: Any, rng: Random) -> Any:
    """Change one place of a JSON document; in 9 of 10 cases its checksum matches afterwards."""
    document = change_value(value, rng)
    if isinstance(value, dict) and isinstance(document, dict) and "sha256" in value and rng.random() < 0.9:
        with suppress(ValueError, RecursionError):  # NaN and infinity have no checksum
            return add_checksum(document)
    return document


def change_value(value: Any, rng: Random) -> Any:
    """Replace, remove or repeat one place of a JSON value."""
    if not isinstance(value, (list, dict)) or not value or rng.random() < 0.1:
        return _replace_value(value, rng)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    copy = value.copy()
    act = rng.random()
    if act < 0.1:
        del copy[key]
    elif act < 0.2 and isinstance(copy, list):
        copy.append(copy[key])
    elif act < 0.2:
        copy[rng.choice(["", "x", "runs", "step", str(key) + "x"])] = copy.pop(key)
    else:
        copy[key] = change_value(value[key], rng)
    return copy


def _replace_value(value: Any, rng: Random) -> Any:
    act = rng.random()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and act < 0.5:
        return rng.choice([-value, value + 1, value - 1, value * 1000, float(value)] if abs(value) < 1e300 else ODD)
    if isinstance(value, str) and act < 0.3:
        return value[: rng.randrange(len(value) + 1)]
    if act < 0.35:
        return [value]
    if act < 0.36:
        deep: Any = value
        for _ in range(rng.choice([15, 40, 400])):
            deep = [deep]
        return deep
    return rng.choice(ODD)
