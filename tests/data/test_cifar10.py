import gzip
import hashlib
import io
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch

from noiseprop.data import cifar10, load
from noiseprop.data.archives import iterate_tar_files
from noiseprop.errors import DataError
from noiseprop.models.resnet import CIFAR10_PIXELS

NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    """Four rows a file."""
    rng = np.random.default_rng(0)
    made = {name: rng.integers(0, 256, (4, 3073), dtype=np.uint8) for name in NAMES}
    for content in made.values():
        content[:, 0] %= 10
    return made


@pytest.fixture
def folder(tmp_path, rows):
    """Make the unpacked folder inside a data folder."""
    path = tmp_path / "unpacked" / FOLDER
    path.mkdir(parents=True)
    for name, content in rows.items():
        (path / name).write_bytes(content.tobytes())
    return path


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def official_members(rows: dict[str, np.ndarray]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """As in the official archive: the folder, the lists of names, then the data."""
    return [
        member(FOLDER, type=tarfile.DIRTYPE),
        member(f"{FOLDER}/batches.meta.txt", b"airplane\n"),
        *(member(f"{FOLDER}/{name}", content.tobytes()) for name, content in rows.items()),
        member(f"{FOLDER}/readme.html", b"<html>"),
    ]


@pytest.fixture
def archive(tmp_path, rows):
    path = tmp_path / "packed" / ARCHIVE
    path.parent.mkdir()
    path.write_bytes(gzip.compress(tar_of(*official_members(rows))))
    return path


def check(dataset, rows) -> None:
    pooled = np.concatenate([rows[name] for name in NAMES])
    assert dataset.images.dtype == torch.uint8
    assert dataset.images.shape == (24, 3, 32, 32)
    assert dataset.images.is_contiguous()
    assert dataset.labels.tolist() == pooled[:, 0].tolist()
    for image, row in zip(dataset.images, pooled, strict=True):
        red, green, blue = row[1:1025], row[1025:2049], row[2049:]  # as the official page describes a row
        assert image[0].flatten().tolist() == red.tolist()
        assert image[1].flatten().tolist() == green.tolist()
        assert image[2].flatten().tolist() == blue.tolist()


def test_reads_the_unpacked_folder(folder, rows):
    dataset = load("cifar10", folder.parent)
    check(dataset, rows)
    assert dataset.classes[3] == "cat"
    assert dataset.source.startswith("CIFAR-10: 20 training and 4 test images from ")
    assert dataset.source.endswith("which are not the official files")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("top", ["", "./"])
def test_reads_the_archive(archive, rows, format, top):
    members = official_members(rows)
    for info, _ in members:
        info.name = top + info.name
        info.mtime = 1.5  # makes an extended header in the pax format
    archive.write_bytes(gzip.compress(tar_of(*members, format=format)))
    check(load("cifar10", archive.parent), rows)


def test_nothing_is_extracted(archive):
    load("cifar10", archive.parent)
    assert [path.name for path in archive.parent.iterdir()] == [ARCHIVE]


def test_files_with_the_official_checksums_are_called_official(folder, rows, monkeypatch):
    digests = {name: hashlib.sha256(content.tobytes()).hexdigest() for name, content in rows.items()}
    monkeypatch.setattr(cifar10, "OFFICIAL_DIGESTS", digests)
    assert load("cifar10", folder.parent).source.endswith(", the official files")


def test_the_known_copy_is_called_what_it_is(folder, rows, monkeypatch):
    digests = {name: hashlib.sha256(content.tobytes()).hexdigest() for name, content in rows.items()}
    monkeypatch.setattr(cifar10, "JPEG_COPY_DIGESTS", digests)
    ending = ", a copy decoded from JPEG, which are not the official files"
    assert load("cifar10", folder.parent).source.endswith(ending)
    for name, content in rows.items():
        (folder / name).write_bytes(content[::-1].tobytes())
        assert not load("cifar10", folder.parent).source.endswith(ending), name
        (folder / name).write_bytes(content.tobytes())


def test_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: no such file; put https://www.cs.toronto.edu/"):
        load("cifar10", tmp_path)


def test_missing_file_is_refused(folder):
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin: no such file"):
        load("cifar10", folder.parent)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: b"", "0 bytes, expected 1 to 10,000 rows of 3,073 bytes"),
        (lambda content: content[:-1], "12,291 bytes, expected 1 to 10,000 rows"),
        (lambda content: content + b"x", "12,293 bytes"),
        (lambda content: b"\x0a" + content[1:], "label 10, expected 0 to 9"),
        (lambda content: bytes(3073 * 10_000 + 1), "larger than the limit of 30,730,000 bytes"),
    ],
)
def test_damaged_file_is_one_sentence(folder, damage, sentence):
    path = folder / "data_batch_2.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"data_batch_2.bin: .*{sentence}"):
        load("cifar10", folder.parent)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda packed: packed[:-9], "ends before its gzip stream does"),
        (lambda packed: packed[: len(packed) // 2], "ends before its gzip stream does"),
        (lambda packed: packed[:500] + bytes([packed[500] ^ 255]) + packed[501:], "not a valid gzip file"),
        (
            lambda packed: gzip.compress(gzip.decompress(packed).split(b"/test_batch.bin")[0] + b"/"),
            "header .* damaged",
        ),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-20_000]), f"ends within '{FOLDER}/test_batch.bin'"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:2048]), f"has no {FOLDER}/data_batch_1.bin|damaged"),
        (lambda packed: gzip.compress(b""), "the tar header at byte 0 is damaged"),
        (lambda packed: gzip.compress(b"no tar" * 1000), "the tar header at byte 0 is damaged"),
        (lambda packed: b"PK\3\4", "not a valid gzip file"),
    ],
)
def test_damaged_archive_is_one_sentence(archive, damage, sentence):
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DataError, match=sentence):
        load("cifar10", archive.parent)


@pytest.mark.parametrize("name", ["../evil", f"{FOLDER}/../../evil", "/etc/evil", "a\\..\\evil", "C:/evil"])
def test_member_that_climbs_out_is_refused(archive, rows, name):
    archive.write_bytes(gzip.compress(tar_of(*official_members(rows), member(name, b"x"))))
    with pytest.raises(DataError, match="climbs out of the archive"):
        load("cifar10", archive.parent)


def test_link_in_place_of_a_file_is_not_followed(archive, rows):
    members = official_members(rows)
    members[2] = member(f"{FOLDER}/data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    archive.write_bytes(gzip.compress(tar_of(*members)))
    with pytest.raises(DataError, match=f"has no {FOLDER}/data_batch_1.bin"):
        load("cifar10", archive.parent)


def test_bit_flip_in_a_header_is_found(tmp_path):
    raw = bytearray(tar_of(member("a", b"content")))
    raw[1] ^= 1
    with pytest.raises(DataError, match="tar header at byte 0 is damaged"):
        list(iterate_tar_files(bytes(raw), tmp_path))


def header(size: bytes) -> bytes:
    """Return a tar header with a valid checksum for a file whose size is written as `size`."""
    raw = bytearray(tar_of(member("a"))[:512])
    raw[124:136] = size.ljust(12, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize("size", [b"-1", b"8", b"", b"\x80\0\0\0\0\0\0\0\0\0\0\1", b"\xff" * 12, b"1_0", b"0o10"])
def test_size_that_is_no_number_is_refused(tmp_path, size):
    with pytest.raises(DataError, match="tar header at byte 0 is damaged"):
        list(iterate_tar_files(header(size) + bytes(2048), tmp_path))


def test_size_beyond_the_end_is_refused(tmp_path):
    with pytest.raises(DataError, match="ends within 'a'"):
        list(iterate_tar_files(header(b"77777777777") + bytes(2048), tmp_path))


def test_endless_members_end(tmp_path):
    with pytest.raises(DataError, match="holds more than 64 members"):
        list(iterate_tar_files(header(b"0") * 100_000, tmp_path))


def test_archive_bomb_ends_within_its_bound(archive, monkeypatch):
    monkeypatch.setattr(cifar10, "_MAX_UNPACKED_BYTES", 1_000_000)
    archive.write_bytes(gzip.compress(bytes(100_000_000), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        load("cifar10", archive.parent)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.real_data
def test_real_images(real_data):
    dataset = load("cifar10", real_data)
    assert dataset.images.shape == (60_000, 3, 32, 32)
    assert dataset.labels.bincount().tolist() == [6000] * 10
    assert "50,000 training and 10,000 test images" in dataset.source
    channels = dataset.images[:50_000].unbind(1)
    found = [[statistic.item() / 255 for statistic in torch.std_mean(pixels.float())] for pixels in channels]
    for (std, mean), expected_mean, expected_std in zip(found, *CIFAR10_PIXELS, strict=True):
        assert mean == pytest.approx(expected_mean, abs=1e-3)
        assert std == pytest.approx(expected_std, abs=3e-3)  # JPEG takes a little of the copy's contrast
