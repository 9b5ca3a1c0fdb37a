"""ResNets of a few channels, and small folders of images in the forms of CIFAR-10 and Tiny-ImageNet."""

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from noiseprop.models import registry as variants
from noiseprop.models import resnet

collect_ignore = ["ray_nodes.py"]  # a script, which finds test_grid beside itself
ROWS = 24  # of each of CIFAR-10's six files
TINY = (30, 12)  # training images a class, validation images


def net(side: int, classes: int, head: tuple[int, ...]) -> nn.Module:
    if side == 32:
        stem, pool = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Identity()
        return resnet.ResNet(stem, pool, (1, 1, 1, 1), nn.AvgPool2d(4), (16, *head, classes), resnet.CIFAR10_PIXELS)
    stem, pool = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=1, padding=1)
    return resnet.ResNet(stem, pool, (1, 1, 1, 1), nn.AvgPool2d(2), (64, *head, classes), resnet.TINY_IMAGENET_PIXELS)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let the paper's names mean small networks."""
    patch.setattr(resnet, "_WIDTHS", (4, 8, 8, 16))
    for base, side, head in (("ResNet18", 32, (12, 8)), ("ResNet34", 64, (16, 12, 8))):
        for name, layers in ((base, head), (f"{base}-surrogate", ())):
            old = variants.get_architecture(name)
            new = variants.Architecture(partial(net, side, head=layers), old.image, old.classes)
            patch.setitem(variants._ARCHITECTURES, name, new)


def coloured(label: int, classes: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """An image (side, side, 3) with a square whose colour and place tell the class, on noise."""
    image = rng.integers(60, 120, (side, side, 3))
    start = label * (side // 2) // classes
    image[start : start + side // 2, start : start + side // 2, label % 3] += 130
    return image.astype(np.uint8)


def cifar_folder(root: Path) -> Path:
    folder, rng = root / "cifar-10-batches-bin", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = []
        for _ in range(ROWS):
            label = int(rng.integers(10))
            rows.append(bytes([label]) + coloured(label, 10, 32, rng).transpose(2, 0, 1).tobytes())
        (folder / name).write_bytes(b"".join(rows))
    return root


def tiny_folder(root: Path) -> Path:
    """Three classes; the box of every image is where its square is."""
    root.mkdir(parents=True, exist_ok=True)
    rng, top = np.random.default_rng(1), "tiny-imagenet-200"
    wnids = ("n01", "n02", "n03")

    def jpeg(label: int) -> bytes:
        packed = io.BytesIO()
        Image.fromarray(coloured(label, 3, 64, rng)).save(packed, "JPEG", quality=95)
        return packed.getvalue()

    def box(label: int) -> str:
        start = label * 32 // 3
        return f"{start}\t{start}\t{start + 31}\t{start + 31}"

    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr(f"{top}/wnids.txt", "\n".join(wnids))
        for label, wnid in enumerate(wnids):
            names = [f"{wnid}_{i}.JPEG" for i in range(TINY[0])]
            for name in names:
                archive.writestr(f"{top}/train/{wnid}/images/{name}", jpeg(label))
            archive.writestr(f"{top}/train/{wnid}/{wnid}_boxes.txt", "".join(f"{n}\t{box(label)}\n" for n in names))
        lines = []
        for i in range(TINY[1]):
            archive.writestr(f"{top}/val/images/val_{i}.JPEG", jpeg(i % 3))
            lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t{box(i % 3)}\n")
        archive.writestr(f"{top}/val/val_annotations.txt", "".join(lines))
    return root


@pytest.fixture(scope="module")
def small_resnets():
    """The paper's names mean small networks meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory) -> Path:
    """A data folder with both data sets."""
    return tiny_folder(cifar_folder(tmp_path_factory.mktemp("images") / "data"))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Decoded images go to a cache that ends with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
