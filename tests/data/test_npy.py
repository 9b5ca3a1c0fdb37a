"""Headers of .npy files, against NumPy's own reader and writer."""

import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from noiseprop.data.npy import map_npy, parse_npy_header

NUMBERS = hnp.integer_dtypes(endianness="?") | hnp.unsigned_integer_dtypes(endianness="?") | hnp.boolean_dtypes()
DTYPES = NUMBERS | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))


def written(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@settings(max_examples=100, deadline=None, database=None)
@given(array=ARRAYS, version=st.sampled_from([(1, 0), (2, 0), (3, 0)]), fortran=st.booleans())
def test_arrays_that_numpy_writes_are_read(tmp_path_factory, array, version, fortran):
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path_factory.getbasetemp() / "x.npy"
    path.write_bytes(written(array, version))
    found = map_npy(path, "r")
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert parse_npy_header(path.read_bytes()).offset == path.stat().st_size - array.nbytes


WHOLE = written(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        pickle.dumps([1]),
        WHOLE[:-1],
        WHOLE + b"\0",
        WHOLE[:60],
        WHOLE.replace(b"NUMPY\1", b"NUMPY\4"),
        WHOLE.replace(b"\x93NUMPY\1\0v", b"\x93NUMPY\1\0u"),
        WHOLE.replace(b"|u1", b"|O8"),
        WHOLE.replace(b"|u1", b"|f1"),
        WHOLE.replace(b"(2, 3)", b"(2,-3)"),
        WHOLE.replace(b"(2, 3)", b"(9, 9)"),
        WHOLE.replace(b"False", b"0or 1"),
        WHOLE.replace(b"(2, 3)", b"(" + b"1," * 9 + b"6)"),
        written(np.zeros(2, dtype=[("a", "u1"), ("b", "f4")])),
        written(np.array(["text"])),
        written(np.array(["2020-01-01"], dtype="M8[D]")),
    ],
    ids=range(17),
)
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"header|unknown kind"):
        map_npy(path, "r")


def test_a_pipe_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            map_npy(path, "r")
    with pytest.raises(FileNotFoundError):
        map_npy(tmp_path / "none", "r")


def test_writing_to_a_copied_map_leaves_the_file(tmp_path):
    (tmp_path / "x.npy").write_bytes(WHOLE)
    map_npy(tmp_path / "x.npy", "c")[0, 0] = 9
    assert (tmp_path / "x.npy").read_bytes() == WHOLE
