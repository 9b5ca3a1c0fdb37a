import gzip
import hashlib
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from noiseprop.data import load
from noiseprop.errors import DataError, InputError
from noiseprop.files.untrusted import decompress_gzip, read_bounded

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def test_pools_training_and_test_images_in_file_order(mnist_dir, mnist_items):
    digits = load("mnist", mnist_dir)
    images = np.concatenate([mnist_items[IMAGES], mnist_items["t10k-images-idx3-ubyte.gz"]])
    labels = np.concatenate([mnist_items[LABELS], mnist_items["t10k-labels-idx1-ubyte.gz"]])
    assert digits.name == "mnist"
    assert digits.images.dtype == torch.uint8
    assert digits.images.shape == (50, 1, 28, 28)
    assert np.array_equal(digits.images[:, 0].numpy(), images)
    assert digits.labels.tolist() == labels.tolist()
    assert digits.classes == tuple("0123456789")
    assert "40 training and 10 test images" in digits.source


def test_folder_comes_from_the_argument_before_the_environment(mnist_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("NOISEPROP_DATA", str(mnist_dir))
    assert len(load("mnist")) == 50
    with pytest.raises(DataError, match="elsewhere: no such folder; set --data-dir to"):
        load("mnist", tmp_path / "elsewhere")
    monkeypatch.setenv("NOISEPROP_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"elsewhere: no such folder; set \$NOISEPROP_DATA to"):
        load("mnist")
    assert len(load("mnist", mnist_dir)) == 50


def test_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: no such file; put https://.* there"):
        load("mnist", tmp_path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="'cifar11' is not a data set; choose one of mnist, mnist-5k"):
        load("cifar11")


def header(magic=0x803, count=40, rows=28, columns=28) -> bytes:
    return struct.pack(">4I", magic, count, rows, columns)


PIXELS = bytes(40 * 784)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "0 bytes, too few for an IDX header"),
        (header()[:15], "15 bytes, too few"),
        (header(magic=0x801) + PIXELS, "magic number 0x00000801, expected 0x00000803"),
        (header(rows=27) + PIXELS, r"items of shape \(27, 28\), expected \(28, 28\)"),
        (header(count=0), "claims 0 items, expected 1 to 60,000"),
        (header(count=2**31) + PIXELS, "claims 2,147,483,648 items, expected 1 to 60,000"),
        (header() + PIXELS[:-1], "31,359 bytes of data, its header claims 31,360"),
        (header() + PIXELS + b"x", "31,361 bytes of data, its header claims 31,360"),
        (header() + bytes(60_000 * 784 + 1), "unpacks to more than 47,040,016 bytes"),
        (header(count=39) + PIXELS[:-784], "40 labels for the 39 images"),
    ],
)
def test_wrong_idx_content_is_one_sentence(mnist_dir, raw, sentence):
    (mnist_dir / "mnist" / IMAGES).write_bytes(gzip.compress(raw, 1))
    with pytest.raises(DataError, match=sentence) as caught:
        load("mnist", mnist_dir)
    assert "get " in str(caught.value)
    assert "official file" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda packed: b"", "ends before its gzip stream"),
        (lambda packed: packed[:-1], "ends before its gzip stream"),
        (lambda packed: packed[: len(packed) // 2], "ends before its gzip stream"),
        (lambda packed: b"not gzip at all", "not a valid gzip file"),
        (lambda packed: packed[:-8] + bytes(8), "incorrect data check"),
        (lambda packed: packed + b"tail", "4 bytes follow its gzip stream"),
        (lambda packed: packed + packed, "bytes follow its gzip stream"),
    ],
)
def test_damaged_gzip_is_one_sentence(mnist_dir, damage, sentence):
    path = mnist_dir / "mnist" / IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=sentence):
        load("mnist", mnist_dir)


def test_label_above_9_is_refused(mnist_dir):
    raw = struct.pack(">2I", 0x801, 40) + bytes([10] * 40)
    (mnist_dir / "mnist" / LABELS).write_bytes(gzip.compress(raw))
    with pytest.raises(DataError, match="label 10, expected 0 to 9"):
        load("mnist", mnist_dir)


def test_gzip_bomb_ends_within_its_bound(tmp_path):
    packer = zlib.compressobj(1, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()  # 128 MB in less than one
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        decompress_gzip(bomb, 1_000_000, tmp_path / "bomb.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_stream_of_exactly_the_limit_is_read(tmp_path):
    assert decompress_gzip(gzip.compress(bytes(1000)), 1000, tmp_path) == bytes(1000)


def test_large_file_is_not_read_whole(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    with pytest.raises(DataError, match="larger than the limit of 1,000 bytes"):
        read_bounded(path, 1000)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_pipe_and_a_folder_are_refused_at_once(mnist_dir, kind):
    path = mnist_dir / "mnist" / IMAGES
    path.unlink()
    path.mkdir() if kind == "folder" else os.mkfifo(path)  # opening the pipe would wait for ever
    with pytest.raises(DataError, match="no such file"):
        load("mnist", mnist_dir)


@pytest.mark.real_data
def test_official_images(real_data):
    digits = load("mnist", real_data)
    train, test = digits.images[:60_000].numpy(), digits.images[60_000:].numpy()

    def md5(images: np.ndarray) -> str:
        return hashlib.md5(header(count=len(images)) + images.tobytes()).hexdigest()

    assert md5(train) == "6bbc9ace898e44ae57da46a324031adb"
    assert md5(test) == "2646ac647ad5339dbf082846283269ea"
    assert digits.labels.bincount().tolist() == [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    assert digits.labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.real_data
def test_packaged_digits_are_official_ones(real_data):
    official = {
        image.numpy().tobytes(): int(label) for image, label in zip(*_fields(load("mnist", real_data)), strict=True)
    }
    packaged = load("mnist-5k")
    assert all(official[image.numpy().tobytes()] == int(label) for image, label in zip(*_fields(packaged), strict=True))


def _fields(dataset):
    return dataset.images, dataset.labels
