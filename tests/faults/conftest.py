"""What all faults are tried on: small data, runs that nothing disturbed, and processes to kill."""

import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.conftest import idx
from tests.faults.children import shorten
from tests.faults.processes import Children
from tests.faults.runs import Undisturbed, cached
from tests.faults.table import Table
from tests.paper.conftest import tiny_folder

ROOT = Path(__file__).parents[2]
TRIED = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Iterator[Path]:
    """A user's cache of its own, and no data but what `digits` has."""
    cache = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.delenv("NOISEPROP_DATA", raising=False)
        yield cache


@pytest.fixture(scope="session")
def children(home) -> Iterator[Children]:
    started = Children({"OMP_NUM_THREADS": "1"})  # one thread, so that forking is safe
    yield started
    started.stop()


@pytest.fixture
def few(home):
    """In this process what children have: small evaluations, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setitem)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """700 images in MNIST's files: a bright square whose place tells the class, on noise."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "mnist").mkdir()
    for part, count in (("train", 600), ("t10k", 100)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 120, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            top, left = 14 * (label // 5), 5 * (label % 5)
            image[top : top + 12, left : left + 5] += 100
        for name, magic, items in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            (folder / "mnist" / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(magic, items)))
    return folder


@pytest.fixture(scope="session")
def faults(request) -> Table:
    """The table of what was tried."""
    return request.config.stash.setdefault(TRIED, Table())


def pytest_sessionfinish(session, exitstatus) -> None:
    """With $NOISEPROP_PUBLISH set, a run to the end without failures writes its table to results/faults.json."""
    if os.environ.get("NOISEPROP_PUBLISH") and exitstatus == 0 and TRIED in session.config.stash:
        session.config.stash[TRIED].publish(ROOT / "results" / "faults.json")


TRAIN = ("train", "--model", "MLPN", "--data", "mnist")


@pytest.fixture(scope="session")
def train(digits) -> Callable[..., tuple[object, ...]]:
    """The arguments that train a network of so many epochs in a folder, or go on with it."""

    def arguments(folder: Path, epochs: int) -> tuple[object, ...]:
        return (*TRAIN, "--data-dir", digits, "--epochs", epochs, "--resume", "--out", folder)

    return arguments


@pytest.fixture(scope="session")
def evaluate(digits) -> Callable[..., tuple[object, ...]]:
    """The arguments that judge the run in a folder, or go on with it."""
    return lambda folder: ("evaluate", folder, "--data-dir", digits)


@pytest.fixture(scope="session")
def undisturbed(children, train, evaluate, tmp_path_factory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), children, train, evaluate)


@pytest.fixture(scope="session")
def reproduce(digits) -> Callable[..., tuple[object, ...]]:
    """The arguments that reproduce one row of Table 3, with one seed."""

    def arguments(runs: Path, out: Path) -> tuple[object, ...]:
        quick = ("--recipe", "fast", "--epochs", 30, "--seeds", 1, "--jobs", 1, "--models", "MLPN, ReLU")
        return ("reproduce", "table3", "--data-dir", digits, *quick, "--runs", runs, "--out", out)

    return arguments


@pytest.fixture(scope="session")
def reproduced(children, reproduce, tmp_path_factory) -> Path:
    """The `runs` and the `out` of such a reproduction."""
    root = tmp_path_factory.mktemp("reproduced")
    ended = children.run(*reproduce(root / "runs", root / "out"))
    assert ended.code == 0, ended
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A small archive in the form of Tiny-ImageNet's."""
    return tiny_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def decoded(children, pictures, tmp_path_factory) -> dict[str, bytes]:
    """The cache of `pictures`, decoded undisturbed: the entry's index and its images."""
    cache = tmp_path_factory.mktemp("decoded")
    ended = children.run("tiny-imagenet", pictures, do="load", cache=cache)
    assert ended.code == 0, ended
    found = dict(sorted(cached(cache).items()))
    assert [Path(name).suffix for name in found] == [".json", ".npy"]
    return found


@pytest.fixture
def run(undisturbed, tmp_path, few) -> Path:
    """A copy of a finished and judged run."""
    return Path(shutil.copytree(undisturbed.evaluated(3), tmp_path / "run"))
