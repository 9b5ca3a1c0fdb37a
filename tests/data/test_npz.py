import io
import os
import zipfile

import numpy as np
import pytest
import torch

from noiseprop.data import load, split
from noiseprop.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
Y = np.arange(30) % 3


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_and_labels_are_the_arrays(tmp_path, write, order):
    write(tmp_path / "some.npz", x=np.asarray(X, order=order), y=Y.astype(np.uint8)[:, None])
    data = load(str(tmp_path / "some.npz"))
    assert torch.equal(data.images, torch.from_numpy(X.transpose(0, 3, 1, 2).copy()))
    assert torch.equal(data.labels, torch.from_numpy(Y))
    assert (data.name, data.classes, data.path) == ("some.npz", ("0", "1", "2"), str(tmp_path / "some.npz"))


def test_grey_images_and_the_parts_of_keras(tmp_path):
    grey = X[..., 0]
    np.savez(tmp_path / "k.npz", x_train=grey[:20], y_train=Y[:20], x_test=grey[20:], y_test=Y[20:])
    data = load(str(tmp_path / "k.npz"))
    assert (data.images.shape, data.parts) == ((30, 1, 5, 4), (20, 0, 10))
    parts = split(data)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [16, 4, 10]
    held_out = {image.numpy().tobytes() for image in parts.test.images}
    assert held_out == {image.tobytes() for image in grey[20:]}


def archive(path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def packed(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": X.astype(np.float32), "y": Y}, r"x is float32 \(30, 5, 4, 3\), expected uint8"),
        ({"x": X[..., :2], "y": Y}, r"images of shape \(5, 4, 2\), expected \(H, W, 1 or 3\)"),
        ({"x": X, "y": Y[:-1]}, r"y is int64 \(29,\), expected whole numbers \(30,\)"),
        ({"x": X, "y": Y / 2}, "y is float64"),
        ({"x": X, "y": Y - 1}, "y runs from -1 to 1"),
        ({"x": X, "y": Y + 10**9}, "expected labels from 0 to below 100,000"),
        ({"x": X[:0], "y": Y[:0]}, "x holds no images"),
        ({"images": X, "y": Y}, r"has no x\.npy"),
        ({"x_train": X, "y_train": Y}, "has x_train but neither x_val nor x_test"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "give them one shape"),
    ],
)
def test_other_arrays_are_one_sentence(tmp_path, arrays, says):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=says) as raised:
        load(str(tmp_path / "bad.npz"))
    assert "official" not in str(raised.value)


def test_objects_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], dtype=object), y=Y)
    with pytest.raises(DataError, match="x is not a valid array"):
        load(str(tmp_path / "evil.npz"))


def test_damaged_files_are_one_sentence(tmp_path):
    whole = packed(X)
    for content in (
        b"",
        whole[:5],
        whole[:-1],
        whole + b"x",
        whole.replace(b"(30, 5,", b"(99, 5,"),
        b"\x93NUMPY\x09\x00" * 9,
    ):
        archive(tmp_path / "bad.npz", x=content, y=packed(Y))
        with pytest.raises(DataError, match="not a valid array"):
            load(str(tmp_path / "bad.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="not a valid zip archive"):
        load(str(tmp_path / "bad.npz"))


def test_a_declared_size_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr("noiseprop.data.npz.MAX_DECODED_BYTES", 1000)
    np.savez(tmp_path / "big.npz", x=np.zeros((30, 32, 32), np.uint8), y=Y)
    with pytest.raises(DataError, match="expected at most 11,000"):
        load(str(tmp_path / "big.npz"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz: no such folder or file"):
        load(str(tmp_path / "pipe.npz"))
