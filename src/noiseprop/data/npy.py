"""Arrays of numbers in .npy files: NumPy's header parser within limits, and never a pickle."""

import io
import math
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from noiseprop.files.untrusted import check_regular

MAX_NPY_HEADER = 10_000  # bytes, NumPy's own limit; it writes 128
_MAX_DIMENSIONS, _MAX_LENGTH = 32, 2**48
_HEADER_ERRORS = (  # what Python's parser and NumPy's dtypes raise for hostile headers
    *(ValueError, TypeError, KeyError, AttributeError, SyntaxError, OverflowError),
    *(RecursionError, MemoryError, EOFError, tokenize.TokenError),
)


@dataclass(frozen=True)
class NpyHeader:
    """Header of a .npy file.

    Attributes:
        dtype: a boolean, integer or floating dtype.
        shape: the array's shape.
        order: "F" for Fortran order, otherwise "C".
        offset: bytes before the first number.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int

    @property
    def file_size(self) -> int:
        """Return the number of bytes that the file must have."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def parse_npy_header(start: bytes) -> NpyHeader:
    r"""Parse the first bytes of a .npy file.

    Raises:
        ValueError: they are not the header of an array of numbers, or the header is larger than `MAX_NPY_HEADER`.

    >>> header = parse_npy_header(b"\x93NUMPY\1\0\x3c\0{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n")
    >>> header.dtype, header.shape, header.order, header.offset
    (dtype('float32'), (3, 2), 'C', 70)
    """
    file = io.BytesIO(start[: MAX_NPY_HEADER + 12])  # magic, version and length take 12 bytes at most
    try:
        with warnings.catch_warnings(action="ignore"):  # headers of Python 2, and literals that look like mistakes
            version = npy_format.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"unknown version {version}")
            # 3.0 is 2.0 in UTF-8; headers of numbers are ASCII
            read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, is_fortran, dtype = read_header(file, max_header_size=MAX_NPY_HEADER)
    except _HEADER_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"no .npy header of an array of numbers: {reason}") from error
    if dtype.hasobject:
        raise ValueError("its header declares Python objects, which are pickles and never read")
    if dtype.kind not in "biuf":
        raise ValueError(f"its header declares {dtype}, expected numbers")
    if len(shape) > _MAX_DIMENSIONS or not all(0 <= length < _MAX_LENGTH for length in shape):
        raise ValueError("its header declares an impossible shape")
    return NpyHeader(dtype, tuple(map(int, shape)), "F" if is_fortran else "C", file.tell())


def parse_npy(raw: bytes) -> npt.NDArray[Any]:
    """Return the array of a .npy file's bytes as a view of them.

    Raises:
        ValueError: the header is damaged, or does not fit the number of bytes.
    """
    header = parse_npy_header(raw)
    _check_file_size(header, len(raw))
    return np.frombuffer(raw, header.dtype, offset=header.offset).reshape(header.shape, order=header.order)


def map_npy(path: Path, mode: Literal["r", "c"]) -> npt.NDArray[Any]:
    """Map an array into memory, read-only ("r") or copied where it is written to ("c").

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not regular, its header is damaged, or does not fit the length of the file.
    """
    check_regular(path)
    with path.open("rb") as file:
        header = parse_npy_header(file.read(MAX_NPY_HEADER + 12))
        _check_file_size(header, file.seek(0, 2))
    if not math.prod(header.shape):
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, mode, header.offset, header.shape, header.order)


def _check_file_size(header: NpyHeader, size: int) -> None:
    if header.file_size != size:
        raise ValueError(f"{size:,} bytes, its header claims {header.file_size:,}")
