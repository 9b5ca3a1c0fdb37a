import fcntl
import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noiseprop.data import SPLIT_SEED, load, split, tiny_imagenet
from noiseprop.data.split import draw_permutation
from noiseprop.data.tiny_imagenet import decode_jpeg
from noiseprop.errors import DataError
from noiseprop.models.resnet import TINY_IMAGENET_PIXELS

TOP = "tiny-imagenet-200"
WNIDS = ["n03", "n01", "n02"]  # not in alphabetic order, as in the official archive
RNG = np.random.default_rng(0)


def jpeg(size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """Return a noisy JPEG."""
    packed = io.BytesIO()
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    image.save(packed, "JPEG")
    return packed.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def small_archive() -> dict[str, bytes]:
    """Three classes of four images, one of them grey; five validation images; boxes for one class and for val."""
    members = {f"{TOP}/wnids.txt": "\n".join(WNIDS).encode() + b"\n", f"{TOP}/words.txt": b"n01\tgoldfish\n"}
    for wnid in WNIDS:
        for i in range(4):
            mode = "L" if (wnid, i) == ("n01", 2) else "RGB"
            members[f"{TOP}/train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(mode=mode)
    members[f"{TOP}/train/n02/n02_boxes.txt"] = b"".join(b"n02_%d.JPEG\t%d\t1\t62\t63\n" % (i, i) for i in range(4))
    lines = []
    for i in range(5):
        members[f"{TOP}/val/images/val_{i}.JPEG"] = jpeg()
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t{i}\t40\t{i + 20}\n")
    members[f"{TOP}/val/val_annotations.txt"] = "".join(lines).encode()
    members[f"{TOP}/test/images/test_0.JPEG"] = b"never read"
    return members


def write_zip(folder: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def members() -> dict[str, bytes]:
    return small_archive()


@pytest.fixture
def data_dir(tmp_path, members) -> Path:
    return write_zip(tmp_path / "data", members).parent


def entries(cache: Path) -> list[str]:
    """List the suffixes of the files in the cache, except locks."""
    return sorted(path.name.split(".", 1)[1] for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_pools_train_and_val_with_labels_and_boxes(data_dir, members):
    dataset = load("tiny-imagenet", data_dir)
    assert dataset.classes == ("n01", "n02", "n03")
    expected = [
        (members[f"{TOP}/train/{wnid}/images/{wnid}_{i}.JPEG"], label, [i, 1, 62, 63] if wnid == "n02" else [-1] * 4)
        for label, wnid in enumerate(dataset.classes)
        for i in range(4)
    ] + [
        (members[f"{TOP}/val/images/val_{i}.JPEG"], dataset.classes.index(WNIDS[i % 3]), [0, i, 40, i + 20])
        for i in range(5)
    ]
    assert dataset.images.dtype == torch.uint8
    assert dataset.images.shape == (17, 3, 64, 64)
    for position, original in enumerate(draw_permutation(17, SPLIT_SEED)):
        content, label, box = expected[original]
        assert np.array_equal(dataset.images[position].numpy(), decoded(content))
        assert int(dataset.labels[position]) == label
        assert dataset.boxes[position].tolist() == box
    assert dataset.source.startswith(
        "Tiny-ImageNet: 3 classes, 12 training and 5 validation images, 9 of them with a box"
    )
    assert dataset.source.endswith(", with 4 of 500 training images a class, which is not the official archive")


def test_an_archive_with_the_official_share_is_not_said_to_have_fewer(data_dir, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "OFFICIAL_SHARE", 4)
    assert load("tiny-imagenet", data_dir).source.endswith("tiny-imagenet-200.zip, which is not the official archive")


def test_grey_image_becomes_rgb():
    image = decode_jpeg(jpeg(mode="L"), "x")
    assert image.shape == (3, 64, 64)
    assert np.array_equal(image[0], image[1])
    assert np.array_equal(image[0], image[2])


def test_parts_of_the_split_are_slices_of_the_map(data_dir, monkeypatch):
    dataset = load("tiny-imagenet", data_dir)
    parts = split(dataset)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (15, 1, 1)
    assert parts.train.images.data_ptr() == dataset.images.data_ptr()
    assert parts.test.images.untyped_storage().data_ptr() == dataset.images.untyped_storage().data_ptr()
    maps = Path("/proc/self/maps").read_text()
    address = dataset.images.data_ptr()
    ranges = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in maps.splitlines() if ".npy" in line]
    assert any(start <= address < end for start, end in ranges)


def test_writing_to_the_images_does_not_reach_the_cache(data_dir):
    first = load("tiny-imagenet", data_dir).images
    kept = first.clone()
    first.zero_()
    assert torch.equal(load("tiny-imagenet", data_dir).images, kept)


def test_archive_is_decoded_once(data_dir, own_cache, monkeypatch):
    first = load("tiny-imagenet", data_dir)
    assert entries(own_cache) == ["json", "npy"]

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(tiny_imagenet, "decode_jpeg", fail)
    second = load("tiny-imagenet", data_dir)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.boxes, second.boxes)


def test_another_archive_gets_a_cache_of_its_own(data_dir, members, own_cache):
    first = load("tiny-imagenet", data_dir)
    del members[f"{TOP}/train/n01/images/n01_0.JPEG"]
    write_zip(data_dir, members)
    assert len(load("tiny-imagenet", data_dir)) == 16
    assert entries(own_cache) == ["json", "json", "npy", "npy"]
    assert len(first) == 17


def test_stored_members_and_another_top_folder_work(tmp_path, members):
    renamed = {name.replace(TOP, "tiny"): content for name, content in members.items()}
    write_zip(tmp_path / "data", renamed, zipfile.ZIP_STORED)
    assert len(load("tiny-imagenet", tmp_path / "data")) == 17


def test_archive_without_validation_images_works(tmp_path, members):
    train = {name: content for name, content in members.items() if "/val/" not in name}
    write_zip(tmp_path / "data", train)
    assert "12 training and 0 validation images" in load("tiny-imagenet", tmp_path / "data").source


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_damaged_cache_is_made_again(data_dir, own_cache, suffix, damage):
    first = load("tiny-imagenet", data_dir).images.clone()
    [path] = own_cache.rglob(f"*.{suffix}")
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-5] ^= 1
        path.write_bytes({"flip": content, "truncate": content[:-1], "empty": b""}[damage])
    again = load("tiny-imagenet", data_dir)
    assert torch.equal(again.images, first)
    assert entries(own_cache) == ["json", "npy"]


def check_refusal(data_dir: Path, cache: Path, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load("tiny-imagenet", data_dir)
    assert "\n" not in str(caught.value)
    assert entries(cache) == []


CASES = {
    "no such file; put https://cs231n": lambda m: None,
    "0 files wnids.txt in it, expected 1": lambda m: m.pop(f"{TOP}/wnids.txt"),
    "2 files wnids.txt in it": lambda m: m.update({"other/wnids.txt": b"n01"}),
    "wnids.txt has 0 lines": lambda m: m.update({f"{TOP}/wnids.txt": b"\n"}),
    "wnids.txt has 4 lines, 3 of them different": lambda m: m.update({f"{TOP}/wnids.txt": b"n01\nn02\nn03\nn01\n"}),
    "which cannot be a class": lambda m: m.update({f"{TOP}/wnids.txt": b"n01\nn02\nn03\nn/4\n"}),
    "wnids.txt is not plain text": lambda m: m.update({f"{TOP}/wnids.txt": b"\xff\xfe"}),
    "class n04 has no training images": lambda m: m.update({f"{TOP}/wnids.txt": b"n01\nn02\nn03\nn04\n"}),
    "class n05 has no training images": lambda m: m.update({f"{TOP}/train/n05/images/": b""}),
    "train/n03 is not a class of wnids.txt": lambda m: m.update({f"{TOP}/wnids.txt": b"n01\nn02\n"}),
    "has no .*val_annotations.txt": lambda m: m.pop(f"{TOP}/val/val_annotations.txt"),
    "has no line for .*val_5.JPEG": lambda m: m.update({f"{TOP}/val/images/val_5.JPEG": jpeg()}),
    "whose class is not in wnids.txt": lambda m: m.update(
        {f"{TOP}/val/val_annotations.txt": b"val_0.JPEG\tn99\t0\t0\t1\t1"}
    ),
    "has the box '9 0 3 3'": lambda m: m.update({f"{TOP}/train/n02/n02_boxes.txt": b"n02_0.JPEG\t9\t0\t3\t3"}),
    "has the box '0 0 3 64'": lambda m: m.update({f"{TOP}/train/n02/n02_boxes.txt": b"n02_0.JPEG\t0\t0\t3\t64"}),
    "has the box '0 0 -3 6'": lambda m: m.update({f"{TOP}/train/n02/n02_boxes.txt": b"n02_0.JPEG\t0\t0\t-3\t6"}),
    "has the box ''": lambda m: m.update({f"{TOP}/train/n02/n02_boxes.txt": b"n02_0.JPEG"}),
    "n01_0.JPEG is not a valid JPEG image": lambda m: m.update({f"{TOP}/train/n01/images/n01_0.JPEG": b"no image"}),
    "val_3.JPEG is not a valid JPEG image": lambda m: m.update({f"{TOP}/val/images/val_3.JPEG": jpeg()[:-900]}),
    "val_2.JPEG is 63x64 pixels, expected 64x64": lambda m: m.update({f"{TOP}/val/images/val_2.JPEG": jpeg((63, 64))}),
    "declares 65,537 bytes, expected at most 65,536": lambda m: m.update(
        {f"{TOP}/val/images/val_2.JPEG": jpeg() + bytes(65_537 - len(jpeg()))}
    ),
    "member '../evil' climbs out": lambda m: m.update({"../evil": b""}),
    "member 'a/../../evil' climbs out": lambda m: m.update({"a/../../evil": b""}),
    "member '/etc/evil' climbs out": lambda m: m.update({"/etc/evil": b""}),
}


@pytest.mark.parametrize("sentence", CASES)
def test_wrong_archive_is_one_sentence(tmp_path, members, own_cache, sentence):
    CASES[sentence](members)
    path = write_zip(tmp_path / "data", members)
    if sentence.startswith("no such file"):
        path.unlink()
    if "65,537" in sentence:
        members[f"{TOP}/val/images/val_2.JPEG"] = bytes(65_537)
        write_zip(tmp_path / "data", members)
    check_refusal(path.parent, own_cache, sentence)


@pytest.mark.parametrize("damage", [OSError, SyntaxError, EOFError, OverflowError, struct.error, zlib.error])
def test_errors_of_pillow_are_one_sentence(monkeypatch, damage):
    content = jpeg()

    def convert(image, mode):
        raise damage("the reason")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DataError, match=r"x is not a valid JPEG image \(the reason\); get the official"):
        decode_jpeg(content, "x")


def test_png_in_place_of_a_jpeg_is_refused():
    packed = io.BytesIO()
    Image.new("RGB", (64, 64)).save(packed, "PNG")
    with pytest.raises(DataError, match="is not a valid JPEG image"):
        decode_jpeg(packed.getvalue(), "x")


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, members, own_cache):
    content = bytearray(jpeg())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">2H", 65_500, 65_500)  # 4.3 billion pixels
    members[f"{TOP}/val/images/val_1.JPEG"] = bytes(content)
    check_refusal(
        write_zip(tmp_path / "data", members).parent, own_cache, "val_1.JPEG is 65500x65500 pixels, expected 64x64"
    )


def test_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path, members, own_cache):
    name = f"{TOP}/val/images/val_1.JPEG"
    members[name] = bytes(100_000_000)
    path = write_zip(tmp_path / "data", members)
    raw = path.read_bytes().replace(struct.pack("<I", 100_000_000), struct.pack("<I", 1_000))
    path.write_bytes(raw)
    tracemalloc.start()
    check_refusal(path.parent, own_cache, "val_1.JPEG is damaged|val_1.JPEG is not a valid JPEG")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda raw: raw[:-1], "not a valid zip archive"),
        (lambda raw: raw[: len(raw) // 2], "not a valid zip archive"),
        (lambda raw: b"", "not a valid zip archive"),
        (lambda raw: b"PK\3\4" + bytes(1000), "not a valid zip archive"),
        (lambda raw: raw[5000:], "wnids.txt is damaged"),
        (lambda raw: raw[:2000] + bytes(100) + raw[2100:], "is damaged"),
        # a list of members of 4 GB
        (lambda raw: raw[:-10] + b"\xfe\xff\xff\xff" + raw[-6:], "not a valid zip archive"),
    ],
)
def test_damaged_archive_is_one_sentence(data_dir, own_cache, damage, sentence):
    path = data_dir / "tiny-imagenet-200.zip"
    path.write_bytes(damage(path.read_bytes()))
    check_refusal(data_dir, own_cache, sentence)


def test_encrypted_and_unusually_packed_members_are_refused(tmp_path, members, own_cache):
    path = write_zip(tmp_path / "data", members, zipfile.ZIP_LZMA)  # LZMA may ask for 4 GB of dictionary
    check_refusal(path.parent, own_cache, "wnids.txt is encrypted or packed in an unusual way")


def test_repeated_member_is_refused(tmp_path, members, own_cache):
    path = write_zip(tmp_path / "data", members)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{TOP}/wnids.txt", b"n01")
    check_refusal(path.parent, own_cache, "has two members 'tiny-imagenet-200/wnids.txt'")


def test_nothing_is_extracted(data_dir, own_cache):
    load("tiny-imagenet", data_dir)
    assert [path.name for path in data_dir.iterdir()] == ["tiny-imagenet-200.zip"]


def test_full_disk_leaves_no_half_made_cache_and_keeps_the_old_one(data_dir, members, own_cache, files_limited_to):
    old = load("tiny-imagenet", data_dir).images.clone()
    kept = {path: path.read_bytes() for path in own_cache.rglob("*") if path.is_file()}
    for i in range(4, 20):
        members[f"{TOP}/train/n01/images/n01_{i}.JPEG"] = jpeg()
    other = write_zip(data_dir.parent / "other", members).parent
    sentence = r"cannot be written \(File too large\); free 1 MB or set XDG_CACHE_HOME to another folder"
    with files_limited_to(150_000), pytest.raises(DataError, match=sentence):
        load("tiny-imagenet", other)
    assert {path: path.read_bytes() for path in kept} == kept
    assert entries(own_cache) == ["json", "npy"]
    assert torch.equal(load("tiny-imagenet", data_dir).images, old)
    assert len(load("tiny-imagenet", other)) == 33  # with space again


def test_folder_that_cannot_be_made_is_one_sentence(data_dir, own_cache):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written .*set XDG_CACHE_HOME to another folder"):
        load("tiny-imagenet", data_dir)


def test_decoding_stopped_midway_leaves_nothing(data_dir, own_cache, monkeypatch):
    calls = []

    def stop(data, where):
        calls.append(where)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return decode_jpeg(data, where)

    monkeypatch.setattr(tiny_imagenet, "decode_jpeg", stop)
    with pytest.raises(KeyboardInterrupt):
        load("tiny-imagenet", data_dir)
    assert entries(own_cache) == []
    monkeypatch.setattr(tiny_imagenet, "decode_jpeg", decode_jpeg)
    assert len(load("tiny-imagenet", data_dir)) == 17


def test_partial_files_of_killed_processes_are_removed_and_those_of_running_ones_kept(data_dir, own_cache):
    folder = own_cache / "tiny-imagenet"
    folder.mkdir(parents=True)
    left, written = [folder / f"killed.{suffix}.part" for suffix in ("npy", "json")], folder / "at-work.npy.part"
    for number in range(2):  # the second load finds its images in the cache
        for part in (*left, written):
            part.write_bytes(b"half")
        with (folder / "at-work.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            load("tiny-imagenet", data_dir)
        assert [part.exists() for part in (*left, written)] == [False, False, True], number
    load("tiny-imagenet", data_dir)
    assert entries(own_cache) == ["json", "npy"]


@pytest.mark.slow
def test_processes_that_start_together_share_one_cache(data_dir, own_cache):
    code = "import sys; from noiseprop.data import load; print(load('tiny-imagenet', sys.argv[1]).images.sum().item())"
    started = [
        subprocess.Popen([sys.executable, "-c", code, data_dir], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    sums = [process.communicate(timeout=60)[0] for process in started]
    assert sums == [f"{load('tiny-imagenet', data_dir).images.sum().item()}\n"] * 2
    assert entries(own_cache) == ["json", "npy"]


@pytest.mark.real_data
@pytest.mark.slow
def test_real_archive(real_data):
    dataset = load("tiny-imagenet", real_data)
    assert len(dataset.classes) == 200
    counts = re.search(r"([\d,]+) training and ([\d,]+) validation images, ([\d,]+) of them", dataset.source)
    training, validation, boxed = (int(n.replace(",", "")) for n in counts.groups())
    assert training + validation == len(dataset)
    assert validation == 10_000
    assert dataset.labels.bincount().tolist() == [len(dataset) // 200] * 200
    assert int((dataset.boxes[:, 0] >= 0).sum()) == boxed
    parts = split(dataset)
    assert len(parts.test) == len(parts.validation) == len(dataset) // 12
    std, mean = torch.std_mean(parts.train.images[::10].float() / 255, (0, 2, 3))
    for found, expected in zip((mean, std), TINY_IMAGENET_PIXELS, strict=True):
        # of 2,500 images, whose means differ by 0.15: three standard errors
        assert found.tolist() == pytest.approx(expected, abs=0.01)
    with zipfile.ZipFile(real_data / "tiny-imagenet-200.zip") as archive:
        first = decoded(archive.read("tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG"))
    position = int(np.flatnonzero(draw_permutation(len(dataset), SPLIT_SEED) == 0)[0])
    assert np.array_equal(dataset.images[position].numpy(), first)
    assert dataset.classes[int(dataset.labels[position])] == "n01443537"
