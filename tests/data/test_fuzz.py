"""Damaged files of every kind: each reader returns data or raises DataError, whatever the bytes are."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from noiseprop.data.archives import iterate_tar_files, open_zip
from noiseprop.data.mnist import IMAGES_MAGIC, read_idx
from noiseprop.data.mnist5k import parse_digits_csv
from noiseprop.data.tiny_imagenet import MAX_JPEG_BYTES, decode_jpeg
from noiseprop.data.tiny_imagenet_index import list_images
from noiseprop.errors import DataError
from noiseprop.files.untrusted import decompress_gzip

EXAMPLES = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NOISE = np.random.default_rng(0)


def damaged(sound: bytes) -> st.SearchStrategy[bytes]:
    """`sound` with some bytes changed, a piece cut out and a tail added; or bytes that have nothing to do with it."""

    def damage(edits: list[tuple[int, int]], cut: tuple[int, int], tail: bytes) -> bytes:
        raw = bytearray(sound)
        for position, value in edits:
            raw[position] = value
        return bytes(raw[: cut[0]] + raw[cut[0] + cut[1] :] + tail)

    position = st.integers(0, len(sound) - 1) | st.integers(max(0, len(sound) - 64), len(sound) - 1)
    edits = st.lists(st.tuples(position, st.integers(0, 255)), max_size=8)
    cut = st.tuples(st.integers(0, len(sound)), st.integers(0, 64) | st.integers(0, len(sound)))
    return st.builds(damage, edits, cut, st.binary(max_size=32)) | st.binary(max_size=600)


def jpeg() -> bytes:
    packed = io.BytesIO()
    Image.fromarray(NOISE.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(packed, "JPEG", quality=40)
    return packed.getvalue()


IDX = struct.pack(">4I", IMAGES_MAGIC, 3, 28, 28) + NOISE.integers(0, 256, 3 * 784, dtype=np.uint8).tobytes()
JPEG = jpeg()


def tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("folder/first.bin", "folder/second.bin"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700, 1.5
            archive.addfile(info, io.BytesIO(bytes(700)))
    return packed.getvalue()


def tiny_zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t/wnids.txt", "n01\n")
        archive.writestr("t/train/n01/images/n01_0.JPEG", JPEG)
        archive.writestr("t/train/n01/n01_boxes.txt", "n01_0.JPEG\t0\t0\t63\t63\n")
        archive.writestr("t/val/images/val_0.JPEG", b"val")
        archive.writestr("t/val/val_annotations.txt", "val_0.JPEG\tn01\t0\t0\t63\t63\n")
    return packed.getvalue()


@EXAMPLES
@given(content=damaged(IDX), packed=st.booleans())
def test_idx(tmp_path, content, packed):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    try:
        images = read_idx(path, IMAGES_MAGIC, (28, 28), 10)
    except DataError:
        return
    assert images.shape[1:] == (28, 28)
    assert 1 <= len(images) <= 10
    assert content == struct.pack(">4I", IMAGES_MAGIC, len(images), 28, 28) + images.tobytes()


@EXAMPLES
@given(content=damaged(gzip.compress(IDX, mtime=0)))
def test_gzip(content):
    try:
        unpacked = decompress_gzip(content, 2 * len(IDX), Path("x.gz"))
    except DataError:
        return
    assert unpacked == zlib.decompress(content, wbits=31)


@EXAMPLES
@given(content=damaged(tar()))
def test_tar(content):
    try:
        for name, member in iterate_tar_files(content, Path("x.tar")):
            assert ".." not in name.split("/")
            assert len(member) <= len(content)
    except DataError:
        pass


@EXAMPLES
@given(content=damaged(tiny_zip()))
def test_zip(tmp_path, content):
    path = tmp_path / "tiny.zip"
    path.write_bytes(content)
    try:
        with open_zip(path) as archive:
            listing = list_images(archive)
            assert len(listing.members) == len(listing.labels) == len(listing.boxes) >= 1
            for member in listing.members:
                assert len(archive.read(member, MAX_JPEG_BYTES)) <= MAX_JPEG_BYTES
    except DataError:
        pass


@EXAMPLES
@given(content=damaged(JPEG))
def test_jpeg(content):
    try:
        image = decode_jpeg(content, "x.JPEG")
    except DataError:
        return
    assert image.shape == (3, 64, 64)
    assert image.dtype == np.uint8


@settings(EXAMPLES, max_examples=50)
@given(text=damaged(b"0,255,7\n" * 50) | st.text("0123456789,-.\n e#\x00", max_size=200).map(str.encode))
def test_table_of_digits(text):
    with pytest.raises(DataError):  # never 5,000 digits
        parse_digits_csv(text, Path("x.csv"))
