"""User data as they come: unread files, Unicode names, EXIF orientation, odd labels, and arrays of other forms."""

import io
import os
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noiseprop.corruptions import corrupt, corruption_seed, skip
from noiseprop.data import Dataset, batches, crop_and_flip, load, split
from noiseprop.errors import DataError, InputError, NoisepropWarning

RNG = np.random.default_rng(0)


def save_image(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def grey(level: int) -> np.ndarray:
    return np.full((6, 5), level, np.uint8)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of six grey images, cats from level 0 and apes from level 100."""
    for number in range(6):
        save_image(tmp_path / "photos" / "cat" / f"{number}.png", grey(number))
        save_image(tmp_path / "photos" / "ape" / f"{number}.png", grey(100 + number))
    return tmp_path / "photos"


# files that are not read


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        (["cat/a.webp", "cat/b.WEBP", "ape/c.avif"], "2 .webp files and 1 .avif file"),
        (["ape/a.tiff", "ape/b.gif", "ape/c.gif", "cat/d.heic"], "2 .gif files, 1 .heic file and 1 .tiff file"),
        (["cat/x.jfif"], "1 .jfif file"),
    ],
)
def test_images_of_other_formats_are_counted_and_warned_of(photos, names, counted):
    for name in names:
        (photos / name).write_bytes(b"x")
    with pytest.warns(NoisepropWarning, match=f"photos: skipped {counted}; convert them to PNG or JPEG"):
        data = load(str(photos))
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    assert data.source.endswith(f"in 2 class folders, skipping {counted}")


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        (["cat/notes.txt"], "1 .txt file"),
        (["cat/labels.csv", "ape/labels.csv", "ape/Thumbs.db"], "2 .csv files and 1 .db file"),
        (["cat/README", "cat/.DS_Store", "cat/more/a.png"], "1 folder and 1 other file"),
    ],
)
def test_other_entries_of_class_folders_are_counted_without_a_warning(photos, names, counted):
    for name in names:
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    assert load(str(photos)).source.endswith(f", skipping {counted}")


def test_a_class_with_other_formats_alone_says_so(photos):
    (photos / "dog").mkdir()
    for number in range(3):
        (photos / "dog" / f"{number}.webp").write_bytes(b"x")
    with pytest.raises(DataError, match=r"dog: has no images \(only 3 \.webp files\); put \.jpg"):
        load(str(photos))


def test_a_misnamed_part_is_counted(tmp_path):
    for part in ("train", "test", "valid"):
        for label in "ab":
            save_image(tmp_path / "x" / part / label / "0.png", grey(1))
    assert load(f"{tmp_path}/x").source.endswith("skipping 1 folder")


# names of classes


@pytest.mark.parametrize("name", ["café", "Straße 東京", "ñandú", "한국"])
def test_classes_that_differ_in_normalisation_alone_are_one_class(tmp_path, name):
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    for part, label, level in (("train", composed, 10), ("test", decomposed, 20)):
        save_image(tmp_path / "x" / part / label / "0.png", grey(level))
        save_image(tmp_path / "x" / part / "Aa" / "0.png", grey(level + 1))
    data = load(f"{tmp_path}/x")
    assert data.classes == ("Aa", composed)
    assert data.images[:, 0, 0, 0].tolist() == [11, 10, 21, 20]
    assert data.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["café", "ñandú", "한국"])
def test_two_folders_of_one_name_are_explained(photos, name):
    for form in ("NFC", "NFD"):
        save_image(photos / unicodedata.normalize(form, name) / "0.png", grey(1))
    with pytest.raises(DataError, match=f"two class folders named '{name}' differ only in Unicode normalisation"):
        load(str(photos))


@pytest.mark.parametrize(("train", "test"), [("Cat", "cat"), ("airplane", "aeroplane"), ("dogs", "dog")])
def test_a_similar_class_is_suggested(tmp_path, train, test):
    for part, label in (("train", train), ("test", test)):
        save_image(tmp_path / "x" / part / label / "0.png", grey(1))
        save_image(tmp_path / "x" / part / "zebra" / "0.png", grey(1))
    with pytest.raises(DataError, match=rf"class '{test}' has no images in train \(did you mean {train}"):
        load(f"{tmp_path}/x")


BAD_NAMES = {"escape": b"a\x1b[2J", "bytes": b"caf\xe9", "line": b"a\nb", "tab": b"a\tb", "delete": b"a\x7f"}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_paths_that_no_record_can_hold_are_refused(tmp_path, photos, name):
    text = os.fsdecode(name)
    os.rename(photos, os.fsencode(tmp_path) + b"/" + name)
    sentence = "has control characters or bytes that are not UTF-8; rename it"
    for path in (f"{tmp_path}/{text}", f"{tmp_path}/{text}/", f"{tmp_path}/{text}/x.npz"):
        with pytest.raises(InputError, match=sentence) as raised:
            load(path)
        assert str(raised.value).isascii()
        assert str(raised.value).isprintable()
    with pytest.raises(DataError, match=sentence):
        load("mnist", Path(f"{tmp_path}/{text}"))


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_classes_that_no_record_can_hold_are_refused(photos, name):
    os.rename(photos / "ape", os.fsencode(photos) + b"/" + name)
    with pytest.raises(DataError, match=r"class folder .* has control characters or bytes that are not UTF-8; rename"):
        load(str(photos))


def test_names_of_files_do_not_matter(photos):
    for name in BAD_NAMES.values():
        os.rename(photos / "cat" / "0.png", os.fsencode(photos) + b"/cat/" + name + b".png")
        assert sorted(load(str(photos)).images[6:, 0, 0, 0].tolist()) == list(range(6))
        os.rename(os.fsencode(photos) + b"/cat/" + name + b".png", photos / "cat" / "0.png")


# EXIF orientation

UPRIGHT = {  # by the sides of the scene that row 0 and column 0 of the stored pixels show in the EXIF standard
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_turned_upright(tmp_path, orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = RNG.integers(0, 256, (6, 5, 3) if channels == 3 else (6, 5), dtype=np.uint8)
    expected = UPRIGHT[orientation](stored)
    save_image(tmp_path / "x" / "a" / "0.png", stored, exif=exif)
    save_image(tmp_path / "x" / "b" / "0.png", np.ascontiguousarray(expected))
    data = load(f"{tmp_path}/x")
    planes = expected[None] if channels == 1 else expected.transpose(2, 0, 1)
    assert np.array_equal(data.images[0].numpy(), planes)
    assert torch.equal(data.images[0], data.images[1])
    assert data.source.endswith(", 1 of them turned upright by their EXIF orientation")


def test_a_jpeg_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # row 0 of the stored pixels is the right side of the scene, column 0 its top
    stored = np.zeros((16, 24), np.uint8)
    stored[:, 16:] = 255
    for label in "ab":
        save_image(tmp_path / "x" / label / "0.jpg", stored, exif=exif, quality=100)
    images = load(f"{tmp_path}/x").images
    assert images.shape == (2, 1, 24, 16)
    assert int(images[:, 0, :16].max()) < 5
    assert int(images[:, 0, 16:].min()) > 250


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_no_orientation_and_unknown_ones_change_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
    for label in "ab":
        save_image(tmp_path / "x" / label / "0.png", stored, exif=exif)
    data = load(f"{tmp_path}/x")
    assert np.array_equal(data.images[0, 0].numpy(), stored)
    assert "EXIF" not in data.source


# arrays

X = RNG.integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
Y = np.arange(30) % 3


def save_npz(tmp_path: Path, **arrays: np.ndarray) -> str:
    np.savez(tmp_path / "some.npz", **arrays)
    return str(tmp_path / "some.npz")


@pytest.mark.parametrize(
    ("y", "listed"),
    [
        (Y + 1, "run from 1 to 3, but 1 of the 4 classes from 0 have no training images .0.;"),
        (Y * 2, "run from 0 to 4, but 2 of the 5 classes from 0 have no training images .1, 3.;"),
        (Y * 0 + 7, "run from 7 to 7, but 7 of the 8 classes from 0 have no training images .0, 1, 2, 3, 4, ....;"),
        (Y * 0, "run from 0 to 0, but 1 of the 2 classes from 0 have no training images .1.;"),
    ],
)
def test_labels_with_gaps_are_reported(tmp_path, y, listed):
    with pytest.warns(NoisepropWarning, match=f"some.npz: labels {listed} number the classes"):
        data = load(save_npz(tmp_path, x=X, y=y))
    assert data.labels.tolist() == y.tolist()
    assert len(data.classes) == max(y.max() + 1, 2)


def test_a_class_of_the_test_images_alone_is_reported(tmp_path):
    arrays = {"x_train": X[:20], "y_train": Y[:20] % 2, "x_test": X[20:], "y_test": Y[20:]}
    with pytest.warns(NoisepropWarning, match=r"1 of the 3 classes from 0 have no training images \(2\)"):
        load(save_npz(tmp_path, **arrays))


def test_labels_without_gaps_are_read_in_silence(tmp_path):
    for y in (Y, Y.astype(np.uint8), Y.astype(">i2"), Y[:, None]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load(save_npz(tmp_path, x=X, y=y)).labels.tolist() == Y.tolist()


CONVERSIONS = {
    "float32 in [0, 1]": X.astype(np.float32) / 255,
    "float64 in [0, 1]": X / 255,
    "float16 in [0, 1]": (X / 255).astype(np.float16),
    "float64 in [-1, 1]": X / 127.5 - 1,
    "float32 from 0 to 255": X.astype(np.float32),
    "int64 from 0 to 255": X.astype(np.int64),
    "channels first": np.moveaxis(X, -1, 1),
    "one channel first": np.moveaxis(X[..., :1], -1, 1),
    "with alpha": np.concatenate([X, X[..., :1]], -1),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_advice_on_other_arrays_gives_the_images(tmp_path, name):
    x = CONVERSIONS[name]
    with pytest.raises(DataError) as raised:
        load(save_npz(tmp_path, x=x, y=Y))
    expression = str(raised.value).rsplit(": ", 1)[1]
    converted = eval(expression, {"np": np, "x": x})
    expected = X[..., :1] if name == "one channel first" else X
    assert converted.dtype == np.uint8
    assert np.array_equal(converted, expected)
    assert torch.equal(
        load(save_npz(tmp_path, x=converted, y=Y)).images, torch.from_numpy(expected.transpose(0, 3, 1, 2).copy())
    )


@pytest.mark.parametrize(
    ("x", "advice"),
    [
        (X / 255, "multiply by 255"),
        (np.moveaxis(X, -1, 1), "move the channel axis to the end"),
        (X > 127, r"x is bool .*; multiply by 255: x \* np.uint8\(255\)"),
        (X / 255 * np.nan, "x holds NaN or infinity"),
        (X.astype(np.float32) - 130, "its pixels run from -130 to 125; scale them to 0 to 255"),
        (X.astype(np.uint16) * 257, "its pixels run from 0 to 65535; scale them to 0 to 255"),
        (X.reshape(30, -1), "reshape x to images"),
    ],
)
def test_other_images_are_explained(tmp_path, x, advice):
    with pytest.raises(DataError, match=advice):
        load(save_npz(tmp_path, x=x, y=Y))


@pytest.mark.parametrize(
    ("y", "advice"),
    [
        (np.eye(3)[Y], r"turn one-hot rows into labels: y.argmax\(1\)"),
        (Y.astype(np.float64), r"convert whole numbers: y.astype\(np.int64\)"),
        (Y > 0, r"convert whole numbers: y.astype\(np.int64\)"),
        (np.array(["cat", "ape", "dog"])[Y], r"write whole numbers, for example np.unique\(y, return_inverse=True\)"),
        (Y - 1, r"number the classes: np.unique\(y, return_inverse=True\)"),
        (Y[:-1], "give one label per image"),
    ],
)
def test_other_labels_are_explained(tmp_path, y, advice):
    with pytest.raises(DataError, match=advice):
        load(save_npz(tmp_path, x=X, y=y))


@pytest.mark.parametrize("which", ["x", "y", "x_train"])
def test_object_arrays_are_explained_and_never_unpickled(tmp_path, which):
    class Hostile:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    arrays = {"x": X, "y": Y} if which != "x_train" else {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}
    arrays[which] = np.array([Hostile()] * 30, dtype=object)
    with pytest.raises(
        DataError, match=f"{which} is not a valid array .*Python objects, which are pickles.*for example"
    ):
        load(save_npz(tmp_path, **arrays))


HEADERS = {
    "other order of keys": "{'shape': (30,), 'descr': '|u1', 'fortran_order': False}",
    "other quotes and spaces": '{"descr":"|u1" ,"fortran_order":False,"shape":( 30 , )}',
    "without padding": "{'descr': '|u1', 'fortran_order': False, 'shape': (30,)}",
    "a name for the dtype": "{'descr': 'uint8', 'fortran_order': False, 'shape': (30,), }",
    "long integers of Python 2": "{'descr': '|u1', 'fortran_order': False, 'shape': (30L,), }",
}


# NumPy reads headers of Python 2 in versions 1 and 2 only
VERSIONS = [(name, version) for name in HEADERS for version in (1, 2, 3) if version < 3 or "Python 2" not in name]


@pytest.mark.parametrize(("name", "number"), VERSIONS)
def test_headers_that_numpy_reads_are_read(tmp_path, name, number):
    header, version = HEADERS[name], bytes([number, 0])
    length = len(header) + 1
    packed = b"\x93NUMPY" + version + length.to_bytes(2 if version == b"\1\0" else 4, "little")
    packed += header.encode() + b"\n" + Y.astype(np.uint8).tobytes()
    with warnings.catch_warnings(action="ignore"):
        assert np.array_equal(np.load(io.BytesIO(packed)), Y)
    images = io.BytesIO()
    np.save(images, X)
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        archive.writestr("x.npy", images.getvalue())
        archive.writestr("y.npy", packed)
    assert load(str(tmp_path / "some.npz")).labels.tolist() == Y.tolist()


# NumPy's integers


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, torch.tensor])
def test_whole_numbers_of_any_type_are_accepted(kind):
    images = torch.arange(12 * 9 * 9, dtype=torch.int64).remainder(251).to(torch.uint8).view(12, 1, 9, 9)
    data = Dataset("some", images, torch.arange(12) % 2, ("a", "b"), path="/some")
    ours, plain = split(data, kind(5)), split(data, 5)
    assert torch.equal(ours.test.images, plain.test.images)
    assert (type(ours.seed), ours.seed) == (int, 5)
    x = images / 255
    results = []
    for severity in (kind(2), 2):
        generator = torch.Generator().manual_seed(corruption_seed("mnist", "glass_blur", severity))
        skip((128, 1, 9, 9), "glass_blur", severity=severity, params="mnist", generator=generator)
        results.append(corrupt(x, "glass_blur", severity=severity, params="mnist", generator=generator))
    assert torch.equal(*results)
    assert [len(y) for _, y in batches(data, kind(5), generator=None)] == [5, 5, 2]
    padded = [crop_and_flip(x, padding=padding, generator=torch.Generator().manual_seed(0)) for padding in (kind(2), 2)]
    assert torch.equal(*padded)


@pytest.mark.parametrize("seed", [-1, np.int64(-1), 1.0, np.float64(1), True, np.True_, "1", None])
def test_other_split_seeds_are_one_sentence(seed):
    data = Dataset("mnist", torch.zeros(70, 1, 2, 2, dtype=torch.uint8), torch.arange(70) % 10, tuple("0123456789"))
    with pytest.raises(InputError, match=r"the split seed is .*, expected a whole number of at least 0"):
        split(data, seed)


@pytest.mark.parametrize("severity", [0, np.int64(6), 1.0, np.float64(1), True, np.True_, "1", None])
def test_other_severities_are_one_sentence(severity):
    x, generator = torch.zeros(1, 1, 4, 4), torch.Generator()
    with pytest.raises(InputError, match=r"corrupt: severity is .*, expected a whole number from 1 to 5"):
        corrupt(x, "contrast", severity=severity, params="mnist", generator=generator)
    with pytest.raises(InputError, match=r"skip: severity is .*, expected a whole number from 1 to 5"):
        skip((1, 1, 4, 4), "contrast", severity=severity, params="mnist", generator=generator)
