import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from noiseprop.corruptions.cifar10_c import read_cifar10_c
from noiseprop.errors import DataError, InputError

TOTAL = 50_000


def header(path, dtype, shape, order=False):
    """Write a sparse `.npy` file of zeros: its header, then a hole."""
    with Path(path).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": order, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


@pytest.fixture
def folder(tmp_path):
    """Images whose first pixel tells severity and index; labels that run through the classes."""
    header(tmp_path / "glass_blur.npy", "|u1", (TOTAL, 32, 32, 3))
    images = np.load(tmp_path / "glass_blur.npy", mmap_mode="r+")
    images[20_000, 0, 1] = (7, 8, 9)
    images[29_999, 31, 0] = (1, 2, 3)
    images[30_000, 0, 0] = 200
    images.flush()
    np.save(tmp_path / "labels.npy", (np.arange(TOTAL) % 10_000 % 10).astype(np.uint8))
    return tmp_path


def test_the_rows_of_a_severity_are_read_channels_first(folder):
    third = read_cifar10_c(folder, "glass_blur", severity=3)
    assert third.images.shape == (10_000, 3, 32, 32)
    assert third.images.dtype == torch.uint8
    assert third.images[0, :, 0, 1].tolist() == [7, 8, 9]
    assert third.images[-1, :, 31, 0].tolist() == [1, 2, 3]
    assert int(third.images.int().sum()) == 7 + 8 + 9 + 1 + 2 + 3
    assert third.labels.tolist() == [i % 10 for i in range(10_000)]
    assert third.name == "cifar10-c/glass_blur/3"
    assert third.classes[3] == "cat"


def test_other_kinds_and_severities_are_refused(folder):
    with pytest.raises(InputError, match="unknown kind 'fog'"):
        read_cifar10_c(folder, "fog", severity=1)
    for severity in (0, 6, 1.5, True):
        with pytest.raises(InputError, match="severity is"):
            read_cifar10_c(folder, "glass_blur", severity=severity)


def test_a_missing_file_is_named(folder):
    with pytest.raises(DataError, match=r"contrast\.npy: no such file"):
        read_cifar10_c(folder, "contrast", severity=1)
    (folder / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"labels\.npy: no such file"):
        read_cifar10_c(folder, "glass_blur", severity=1)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: p.write_bytes(b""), "not a readable .npy"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00"), "not a readable .npy"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "not a readable .npy"),
        (lambda p: p.write_bytes(pickle.dumps(Bomb())), "not a readable .npy"),
        (lambda p: np.save(p, np.array([Bomb()], dtype=object), allow_pickle=True), "not a readable .npy"),
        (lambda p: header(p, "|u1", (TOTAL, 3, 32, 32)), "expected uint8"),
        (lambda p: header(p, "|i1", (TOTAL, 32, 32, 3)), "holds int8"),
        (lambda p: header(p, "|u1", (TOTAL - 1, 32, 32, 3)), "expected uint8"),
        (
            lambda p: np.savez(p.with_suffix(".npz"), a=np.zeros(3)) or p.with_suffix(".npz").rename(p),
            "not a readable .npy",
        ),
        (lambda p: os.truncate(p, p.stat().st_size - 1), "not a readable .npy"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_clear_sentence(folder, write, says):
    write(folder / "glass_blur.npy")
    with pytest.raises(DataError, match=says) as caught:
        read_cifar10_c(folder, "glass_blur", severity=1)
    assert "glass_blur.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_out_of_range(folder):
    labels = np.load(folder / "labels.npy")
    labels[5] = 10
    np.save(folder / "labels.npy", labels)
    with pytest.raises(DataError, match="label 10"):
        read_cifar10_c(folder, "glass_blur", severity=1)
    assert len(read_cifar10_c(folder, "glass_blur", severity=2)) == 10_000
