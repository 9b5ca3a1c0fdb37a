"""Files with false sizes or exploding contents: `python -m tests.fuzz.bombs` reads each of them.

Each must end in one sentence within its limit of additional memory. The system denies a process more memory than that,
and the test fails.
"""

import gzip
import json
import os
import re
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.fuzz.readers import config_seeds, picture_seeds, plain_net

from noiseprop.corruptions.cifar10_c import read_cifar10_c
from noiseprop.data.archives import open_zip
from noiseprop.data.cifar10 import CIFAR10_ARCHIVE, read_cifar10
from noiseprop.data.class_folders import read_class_folders
from noiseprop.data.mnist import IMAGES_MAGIC, MAX_TRAIN, read_idx
from noiseprop.data.npz import read_npz
from noiseprop.data.tiny_imagenet import MAX_JPEG_BYTES, decode_jpeg
from noiseprop.data.tiny_imagenet_index import list_images
from noiseprop.errors import NoisepropError
from noiseprop.evaluation.serialization import read_evaluation
from noiseprop.files.checksum import add_checksum
from noiseprop.noise.attach.serialization import load_noise
from noiseprop.paper.results import read_table
from noiseprop.runs.trained_model import load_run, read_run_settings
from noiseprop.training import read_metrics
from noiseprop.training.checkpoint import read_epoch


@dataclass(frozen=True)
class Bomb:
    """Hostile file.

    Attributes:
        says: description of the file.
        most: MB that reading it may take.
        make: writes it into a folder.
        read: reads it there.
    """

    says: str
    most: int
    make: Callable[[Path], object]
    read: Callable[[Path], object]


@cache
def zeros(wbits: int = 31) -> bytes:
    """Compress a gigabyte of zeros to a megabyte of gzip (31) or zlib (15)."""
    packer = zlib.compressobj(9, wbits=wbits)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(1024)), packer.flush()])


def zeros_as(name: str) -> Callable[[Path], object]:
    """Write the zeros to a file."""
    return lambda folder: (folder / name).write_bytes(zeros())


def idx(folder: Path) -> None:
    """Write a header without images."""
    (folder / "x.gz").write_bytes(gzip.compress(struct.pack(">4I", IMAGES_MAGIC, 2**31, 28, 28)))


def read_images(folder: Path) -> None:
    """Read the file as MNIST's training images."""
    read_idx(folder / "x.gz", IMAGES_MAGIC, (28, 28), MAX_TRAIN)


def zip_of(folder: Path, count: int) -> None:
    """Write an archive of empty members with the smallest possible entries."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    listed = b"".join(entry + b"%08x" % number for number in range(count))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(listed), 0, 0)
    (folder / "x.zip").write_bytes(listed + end)


def lying_zip(folder: Path) -> None:
    """Write a member that declares 4 bytes and has a gigabyte."""
    with (
        zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("t/wnids.txt", "w", force_zip64=True) as member,
    ):
        for _ in range(1024):
            member.write(bytes(2**20))
    raw = bytearray((folder / "x.zip").read_bytes())
    start = raw.index(b"PK\1\2")
    raw[start + 24 : start + 28] = (4).to_bytes(4, "little")
    (folder / "x.zip").write_bytes(raw)


def read_zip(folder: Path) -> None:
    """Read the archive as Tiny-ImageNet's."""
    with open_zip(folder / "x.zip") as archive:
        list_images(archive)


def jpeg(folder: Path) -> None:
    """Write a valid header of an image of 65,500 times 65,500 pixels."""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65500, 65500, 3) + b"\1\x11\0\2\x11\1\3\x11\1"
    (folder / "x").write_bytes(b"\xff\xd8" + frame + b"\xff\xda" + bytes(60_000) + b"\xff\xd9")


def png(path: Path, side: int = 30_000, *more: tuple[bytes, bytes]) -> None:
    """Write a square image in 60 kB, with more chunks."""
    head, packed = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0), zlib.compress(bytes(2**25), 9)
    chunks = [(b"IHDR", head), *more, (b"IDAT", packed), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def pictures(side: int, *more: tuple[bytes, bytes]) -> Callable[[Path], None]:
    """Write two class folders, one with such an image."""

    def make(folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()
        (folder / "one" / "x.png").write_bytes(picture_seeds()[0])
        png(folder / "two" / "x.png", side, *more)

    return make


def packed_text(folder: Path) -> None:
    """Write them with a text of a megabyte that unpacks to a gigabyte."""
    pictures(4, (b"zTXt", b"Title\0\0" + zeros(15)))(folder)


def own_npz(folder: Path) -> None:
    """Write an array whose header claims 2^50 bytes."""
    npy(folder)
    with zipfile.ZipFile(folder / "own.npz", "w") as archive:
        archive.write(folder / "contrast.npy", "x.npy")


def read_image(folder: Path) -> None:
    """Read the file as one of Tiny-ImageNet's images."""
    decode_jpeg((folder / "x").read_bytes()[:MAX_JPEG_BYTES], "x.JPEG")


def read_pictures(folder: Path) -> None:
    """Read the folder as user data."""
    read_class_folders(folder, "pictures/")


def tensors(size: int) -> Callable[[Path], None]:
    """Write a sparse safetensors file whose header has `size` bytes."""

    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(size.to_bytes(8, "little") + b"{")
        os.truncate(path, size + 8)

    return make


def many_tensors(folder: Path) -> None:
    """Write as many tensors as fit into the largest header that is read."""
    one = '"%06x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(one % number for number in range(280_000)) + "}"
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode())


def text(content: str | bytes, name: str = "config.json") -> Callable[[Path], object]:
    """Write a text file."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def sparse(size: int, name: str = "config.json") -> Callable[[Path], object]:
    """Write a sparse file."""

    def make(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return make


def classes(folder: Path) -> None:
    """Write a network of 10^12 classes."""
    document = json.loads(config_seeds()[0])
    document["settings"]["model"]["classes"] = 10**12
    text(json.dumps(add_checksum(document)))(folder)


def npy(folder: Path) -> None:
    """Write a header that claims 2^50 bytes."""
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,), }"
    (folder / "contrast.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", 118) + head.ljust(117) + b"\n")


def read_corrupted(folder: Path) -> None:
    """Read the file as one of CIFAR-10-C."""
    read_cifar10_c(folder, "contrast", severity=1)


def metrics_file(folder: Path) -> None:
    """Write the largest number of lines, none of them an epoch in its place."""
    rows = "".join(f'{{"epoch":{number}}}\n' for number in range(1, 900_000)) + '{"epoch":0}\n'
    text(rows, "metrics.jsonl")(folder)


def read_tensors(folder: Path) -> None:
    """Read the file as that of a trained model."""
    read_epoch(folder / "model.safetensors")


_PAIR = '{"a":0},'
_WIDE = text('["\U0001f600' + "a" * 30_000_000 + '"]')

BOMBS = [
    Bomb("an IDX header that claims 2^31 images", 16, idx, read_images),
    Bomb(
        "1 GB of zeros as MNIST's images, packed to 1 MB", 160, lambda f: (f / "x.gz").write_bytes(zeros()), read_images
    ),
    Bomb("the same as the CIFAR-10 archive", 512, zeros_as(CIFAR10_ARCHIVE.path), read_cifar10),
    Bomb("a JPEG of 65,500 x 65,500 pixels", 16, jpeg, read_image),
    Bomb("a PNG of 30,000 x 30,000 pixels", 16, lambda f: png(f / "x"), read_image),
    Bomb("the same in a class folder", 32, pictures(30_000), read_pictures),
    Bomb(
        "a PNG in a class folder with 1 GB of text, packed to 1 MB",
        32,
        packed_text,
        read_pictures,
    ),
    Bomb("a .npz file whose array claims 2^50 bytes", 48, own_npz, lambda f: read_npz(f / "own.npz", "own.npz")),
    Bomb("a zip archive of a million members", 128, lambda f: zip_of(f, 1_000_000), read_zip),
    Bomb(
        "a zip archive of 300,000 members",
        128,
        lambda f: zip_of(f, 300_000),
        read_zip,
    ),
    Bomb("a zip member of 1 GB that is said to have 4 bytes", 16, lying_zip, read_zip),
    Bomb("a safetensors header of 1 GB", 16, tensors(2**30), read_tensors),
    Bomb("the same as a file of noise", 16, tensors(2**30), lambda f: load_noise(plain_net(), f / "model.safetensors")),
    Bomb(
        "280,000 tensors in a header of 16 MB",
        256,
        many_tensors,
        read_tensors,
    ),
    Bomb("JSON nested 10,000 deep as config.json", 16, text('{"a":' * 10_000 + "0" + "}" * 10_000), read_run_settings),
    Bomb(
        "the same as evaluation.json",
        16,
        text("[" * 10_000 + "]" * 10_000),
        lambda f: read_evaluation(f / "config.json"),
    ),
    Bomb("the same as a results file", 16, text("[" * 10_000 + "]" * 10_000), lambda f: read_table(f / "config.json")),
    Bomb("a config.json of 1 TB", 16, sparse(2**40), read_run_settings),
    Bomb("10 million empty objects as config.json", 96, text("[" + "{}," * 10**7 + "0]"), read_run_settings),
    Bomb("half a million small objects as config.json", 384, text("[" + _PAIR * 499_000 + "0]"), read_run_settings),
    Bomb(
        "a text of 30 MB, four bytes a character in memory",
        512,
        _WIDE,
        read_run_settings,
    ),
    Bomb("a number of 30 million digits", 192, text("1" * 30_000_000), read_run_settings),
    Bomb("a network of 10^12 classes", 16, classes, load_run),
    Bomb("900,000 lines of metrics.jsonl", 512, metrics_file, read_metrics),
    Bomb("a .npy header that claims 2^50 bytes", 16, npy, read_corrupted),
]


def read_bomb(bomb: Bomb) -> dict[str, object]:
    """Read a bomb within its memory limit.

    Returns:
        The message of the error, and the seconds that it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        bomb.make(Path(folder))
        mapped = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, ((mapped << 10) + (bomb.most << 20), hard))
        start = time.perf_counter()
        try:
            bomb.read(Path(folder))
        except NoisepropError as error:
            return {"says": bomb.says, "sentence": str(error), "seconds": time.perf_counter() - start}
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return {"says": bomb.says, "sentence": "", "seconds": 0.0}


if __name__ == "__main__":
    for one in BOMBS:
        try:
            outcome = read_bomb(one)
        except MemoryError:
            outcome = {"says": one.says, "sentence": "", "seconds": -1}
        json.dump(outcome, sys.stdout)
        print(flush=True)
