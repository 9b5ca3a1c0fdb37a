"""A NaN in a batch is told, and the last good epoch is kept."""

import math
import random

import pytest
from tests.faults.runs import same
from tests.faults.table import TOLD_ON

from noiseprop.cli import main
from noiseprop.data import batches
from noiseprop.training.checkpoint import read_epoch

pytestmark = pytest.mark.slow
EPOCHS, STEPS = 3, 4  # 500 training images in batches of 128


def poisoned(number):
    """`batches` whose `number`-th batch over all epochs has one NaN in it."""
    left = number

    def generate(*arguments, **options):
        nonlocal left
        for x, y in batches(*arguments, **options):
            if left == 0:
                x = x.clone()
                x[0, 0, 14, 14] = math.nan
            left -= 1
            yield x, y

    return generate


def test_nan(children, train, undisturbed, tmp_path, few, monkeypatch, capsys, faults):
    numbers = [0, STEPS, EPOCHS * STEPS - 1, *random.Random(2).sample(range(EPOCHS * STEPS), 2)]
    for place, number in enumerate(numbers):
        folder, epoch = tmp_path / str(place), number // STEPS + 1
        with monkeypatch.context() as patch:
            patch.setattr("noiseprop.training.loop.batches", poisoned(number))
            assert main(list(map(str, train(folder, EPOCHS)))) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"noiseprop: the loss became nan in epoch {epoch}, so training stopped; ")
        assert said.endswith("earlier epochs are saved; try a smaller learning rate\n")
        assert said.count("\n") == 1
        if epoch == 1:
            assert not (folder / "model.safetensors").exists()
        else:
            assert read_epoch(folder / "model.safetensors") == epoch - 1
            assert (folder / "model.safetensors").read_bytes() == (
                undisturbed.run(epoch - 1) / "model.safetensors"
            ).read_bytes()
        assert children.run(*train(folder, EPOCHS)).code == 0
        assert same(folder, undisturbed.run(EPOCHS))
        faults.add("nan", TOLD_ON)
