import gzip
import os
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Give every test an empty cache and no $NOISEPROP_DATA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NOISEPROP_DATA", raising=False)
    return tmp_path / "cache" / "noiseprop"


REAL_DATA = os.environ.get("NOISEPROP_DATA")


@pytest.fixture
def real_data() -> Path:
    if not REAL_DATA:
        pytest.skip("NOISEPROP_DATA is unset: lay the data out with .ci/run")
    return Path(REAL_DATA)


def idx(magic: int, items: np.ndarray, count: int | None = None) -> bytes:
    """Return the bytes of an IDX file whose header claims `count` items."""
    sizes = (len(items) if count is None else count, *items.shape[1:])
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + items.astype(np.uint8).tobytes()


MNIST_FILES = {
    "train-images-idx3-ubyte.gz": 0x803,
    "train-labels-idx1-ubyte.gz": 0x801,
    "t10k-images-idx3-ubyte.gz": 0x803,
    "t10k-labels-idx1-ubyte.gz": 0x801,
}


@pytest.fixture
def mnist_items() -> dict[str, np.ndarray]:
    """Forty training and ten test digits of noise, by file."""
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte.gz": rng.integers(0, 256, (40, 28, 28)),
        "train-labels-idx1-ubyte.gz": rng.integers(0, 10, 40),
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (10, 28, 28)),
        "t10k-labels-idx1-ubyte.gz": rng.integers(0, 10, 10),
    }


@pytest.fixture
def mnist_packed(mnist_items) -> dict[str, bytes]:
    """Return them as gzip-compressed IDX files."""
    return {name: gzip.compress(idx(MNIST_FILES[name], items)) for name, items in mnist_items.items()}


@pytest.fixture
def mnist_dir(tmp_path, mnist_packed) -> Path:
    """Make a data folder with a small MNIST."""
    folder = tmp_path / "data"
    (folder / "mnist").mkdir(parents=True)
    for name, packed in mnist_packed.items():
        (folder / "mnist" / name).write_bytes(packed)
    return folder


@pytest.fixture
def files_limited_to():
    """Return a context that limits the size of files, so that writing fails as on a full disk."""

    @contextmanager
    def limited(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
