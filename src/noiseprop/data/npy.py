"""Arrays of a .npy file, whose header is matched and never evaluated.

NumPy's own reader hands the header to Python's parser, which hostile ones send into errors of every kind, a
MemoryError among them; and `numpy.load` can unpickle.
"""

import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MOST_HEADER = 4096  # bytes; NumPy's has 128
_HEADER = re.compile(  # as NumPy writes it, in each version of the format
    rb"\x93NUMPY(?:\x01\x00(?P<two>..)|[\x02\x03]\x00(?P<four>....))"
    rb"\{'descr': '(?P<descr>[|<>][biuf][1248])', 'fortran_order': (?P<fortran>False|True), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,15}, ?){0,8}(?:[0-9]{1,15})?)\),? ?\} *\n",
    re.DOTALL,
)


def parse_header(start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    r"""What the first bytes of a .npy file tell: dtype, shape, whether in Fortran's order, and where the numbers begin.

    Raises:
        ValueError: it is no header of an array of numbers.

    >>> parse_header(b"\x93NUMPY\1\0\x3c\0{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n")
    (dtype('float32'), (3, 2), False, 70)
    """
    found = _HEADER.match(start, 0, MOST_HEADER)
    length = int.from_bytes(found["two"] or found["four"], "little") if found else 0
    if not found or found.end() != found.start("descr") - len("{'descr': '") + length:
        raise ValueError("no .npy header of an array of numbers")
    try:
        dtype = np.dtype(found["descr"].decode())
    except TypeError as error:
        raise ValueError(f"unknown kind of number {found['descr'].decode()}") from error
    shape = tuple(map(int, re.findall(rb"[0-9]+", found["shape"])))
    return dtype, shape, found["fortran"] == b"True", found.end()


def parse_array(raw: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file's bytes, which it is a view of.

    Raises:
        ValueError: its header is damaged, or there are other bytes than the header claims.
    """
    dtype, shape, fortran, offset = parse_header(raw)
    _check_size(dtype, shape, offset, len(raw))
    return np.frombuffer(raw, dtype, offset=offset).reshape(shape, order="F" if fortran else "C")


def map_array(path: Path, mode: Literal["r", "c"]) -> npt.NDArray[Any]:
    """An array mapped into memory, read-only ("r") or copied where it is written to ("c").

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no regular file, its header is damaged, or its length is not what the header claims.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    with path.open("rb") as file:
        dtype, shape, fortran, offset = parse_header(file.read(MOST_HEADER))
        _check_size(dtype, shape, offset, file.seek(0, 2))
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode, offset, shape, "F" if fortran else "C")


def _check_size(dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, size: int) -> None:
    claimed = offset + math.prod(shape) * dtype.itemsize
    if claimed != size:
        raise ValueError(f"{size:,} bytes, its header claims {claimed:,}")
