from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noiseprop.data import class_folders, image_files, load, split
from noiseprop.errors import DataError


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pixels(number: int, *, channels: int = 3) -> np.ndarray:
    shape = (6, 5, 3) if channels == 3 else (6, 5)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes, 12 images of 6 rows and 5 columns."""
    for number in range(12):
        save(tmp_path / "photos" / ("cat", "ape")[number % 2] / f"{number:02}.png", pixels(number))
    return tmp_path / "photos"


def test_images_labels_and_classes_are_those_of_the_files(photos):
    (photos / "cat" / ".DS_Store").write_bytes(b"x")
    (photos / "cat" / "notes.txt").write_bytes(b"x")
    (photos / ".git").mkdir()
    (photos / "readme.md").write_bytes(b"x")
    data = load(str(photos))
    assert (data.name, data.classes, data.path) == ("photos/", ("ape", "cat"), str(photos))
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    for image, number in zip(data.images, [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10], strict=True):
        assert torch.equal(image, torch.from_numpy(pixels(number).transpose(2, 0, 1)))
    parts = split(data)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [8, 2, 2]
    assert parts.ratio == (4, 1, 1)


def test_grey_images_have_one_channel_and_become_rgb_beside_coloured_ones(tmp_path):
    for number in range(4):
        save(tmp_path / "a" / f"{number}.png", pixels(number, channels=1))
        save(tmp_path / "b" / f"{number}.png", pixels(number, channels=1))
    assert load(f"{tmp_path}/").images.shape == (8, 1, 6, 5)
    save(tmp_path / "b" / "4.png", pixels(9))
    images = load(f"{tmp_path}/").images
    assert images.shape == (9, 3, 6, 5)
    assert torch.equal(images[0], torch.from_numpy(pixels(0, channels=1)).expand(3, 6, 5))


@pytest.mark.parametrize("held_out", [("val", "test"), ("test",), ("val",)])
def test_given_parts_stay_apart(tmp_path, held_out):
    for place, part in enumerate(("train", *held_out)):
        for number in range(10):
            grey = np.full((4, 4), 50 * place + number, np.uint8)
            save(tmp_path / part / ("a", "b")[number % 2] / f"{number}.png", grey)
    parts = split(load(f"{tmp_path}/"))
    levels = [sorted(part.images[:, 0, 0, 0].tolist()) for part in (parts.train, parts.validation, parts.test)]
    if len(held_out) == 2:
        assert levels == [list(range(10)), list(range(50, 60)), list(range(100, 110))]
        assert parts.ratio == (10, 10, 10)
    else:  # the one held-out part is the test; validation comes from the training images
        assert levels[2] == list(range(50, 60))
        assert sorted(levels[0] + levels[1]) == list(range(10))
        assert len(levels[1]) == 2
    order = parts.test.images[:, 0, 0, 0].tolist()
    assert order != sorted(order)  # random, so that the first n are a sample
    assert order == split(load(f"{tmp_path}/")).test.images[:, 0, 0, 0].tolist()


def damage(photos: Path, how: str) -> None:
    image = photos / "cat" / "00.png"
    content = image.read_bytes()
    if how == "other size":
        save(photos / "cat" / "99.png", np.zeros((6, 6, 3), np.uint8))
    elif how == "cut short":
        image.write_bytes(content[:-40])
    elif how == "no image":
        image.write_bytes(b"GIF89a nonsense")
    elif how == "too large":
        save(photos / "cat" / "99.png", np.zeros((1, 1025), np.uint8))
    elif how == "16 bits":
        Image.fromarray(np.zeros((6, 5), np.uint16)).save(image)
    elif how == "no images":
        (photos / "dog").mkdir()
    elif how == "one class":
        for file in (photos / "ape").iterdir():
            file.unlink()
        (photos / "ape").rmdir()
    elif how == "train alone":
        (photos / "cat").rename(photos / "train")
        save(photos / "train" / "a" / "0.png", pixels(0))
        save(photos / "train" / "b" / "0.png", pixels(0))
    elif how == "class of the test alone":
        (photos / "cat").rename(photos / "test")
        for label in "abc":
            save(photos / "test" / label / "0.png", pixels(0))
        for label in "ab":
            save(photos / "train" / label / "0.png", pixels(0))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("other size", "99.png: is 6x6 pixels, 01.png 5x6; resize all images to one size"),
        ("cut short", "00.png: not a valid image"),
        ("no image", "00.png: not a valid JPEG, PNG, BMP, PPM image"),
        ("too large", "99.png: is 1025x1 pixels, expected at most 1024 per side"),
        ("16 bits", "00.png: its pixels are I;16, expected 8 bits per channel"),
        ("no images", "dog: has no images; put .jpg"),
        ("one class", "has 1 class folders with images, expected 2 or more"),
        ("train alone", "has train but neither val nor test"),
        ("class of the test alone", "class 'c' has no images in train"),
    ],
)
def test_bad_folders_are_one_sentence(photos, how, says):
    damage(photos, how)
    with pytest.raises(DataError) as raised:
        load(str(photos))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_more_than_fits_is_refused_before_it_is_decoded(photos, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_DECODED_BYTES", 12 * 90 - 1)
    monkeypatch.setattr(image_files, "_iterate_pixels", None)
    with pytest.raises(DataError, match=r"12 images of 5x6 pixels need 0\.0 GB"):
        load(str(photos))
    monkeypatch.setattr(class_folders, "MAX_IMAGES", 11)
    with pytest.raises(DataError, match="more images than the limit of 11"):
        load(str(photos))


def test_a_pipe_named_like_an_image_is_not_waited_for(photos):
    import os

    os.mkfifo(photos / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe.png: not a regular file"):
        load(str(photos))
