"""Training in bfloat16 gives the accuracy of float32, so that Table 4 may be made with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from noiseprop.data import batches, load, split
from noiseprop.evaluation.statistics import paired
from noiseprop.noise.stream import reset_noise
from noiseprop.runs.trained_model import train_run
from noiseprop.training import TABLE_1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CNN", "CNN-MLPN"])
def test_bf16_and_fp32_train_networks_of_equal_accuracy(name):
    """Two seeds on 3,572 digits; the networks see the same 714 test images, in float32."""
    dataset = load("mnist-5k")
    x, y = next(batches(split(dataset).test, 714, generator=None))
    right: dict[str, list[np.ndarray]] = {"fp32": [], "bf16": []}
    for precision, outcomes in right.items():
        for seed in (0, 1):
            recipe = replace(TABLE_1["mnist-5k"], epochs=8, precision=precision)
            model, _ = train_run(name, dataset, recipe, None, seed=seed)
            reset_noise(model.eval(), 0)
            with torch.no_grad():
                outcomes.append((model(x).argmax(1) == y).numpy())
    test = paired(np.concatenate(right["fp32"]), np.concatenate(right["bf16"]))
    assert test.accuracy_a > 0.93
    assert abs(test.difference.estimate) < 0.015
    assert test.p_value > 0.01
