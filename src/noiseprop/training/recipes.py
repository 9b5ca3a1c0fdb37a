"""Training settings: Table 1 of the paper, and a short recipe for experiments."""

import math
import sys
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, get_type_hints

import msgspec
import numpy as np

from noiseprop.errors import InputError

Precision = Literal["fp32", "bf16"]
OptimizerName = Literal["adam", "sgd"]
Schedule = Literal["constant", "steps", "one-cycle"]

_Rate = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]


@dataclass(frozen=True)
class Recipe:
    """Settings of one training; the defaults are Table 1 for MNIST.

    Attributes:
        name: name under which results report the recipe.
        epochs: passes over the training images.
        batch_size: images per step, in all processes together.
        optimizer: optimizer of the weights, "adam" or "sgd".
        lr: peak learning rate of the weights.
        weight_decay: L2 penalty, added to the gradient of the weights.
        momentum: momentum of "sgd".
        schedule: schedule of `lr`: "constant", "steps" (times 0.8 every 20 epochs) or "one-cycle"; see
            `compute_learning_rate`.
        sigma_lr: learning rate of sigma, which follows Eq. 7 without decay or schedule.
        augment: random crop with padding 4, and flip.
        precision: "fp32", or "bf16" for autocast to bfloat16.

    Raises:
        InputError: a value is out of range or unknown.

    Source: Table 1 of Xiao, Zhang and Peng (2021).
    """

    name: Annotated[str, msgspec.Meta(max_length=1000)] = "table1"
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 30
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 128
    optimizer: OptimizerName = "adam"
    lr: _Rate = 1e-3
    weight_decay: _Rate = 1e-4
    momentum: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    schedule: Schedule = "constant"
    sigma_lr: _Rate = 1e-3
    augment: bool = False
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Check every field against its type and bounds; NumPy numbers become Python numbers."""
        kinds = get_type_hints(Recipe, include_extras=True)
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            value = value.item() if isinstance(value, np.generic) else value
            try:
                object.__setattr__(self, name, msgspec.convert(value, kinds[name]))
            except msgspec.ValidationError as error:
                raise InputError(f"recipe: {name} is {value!r}: {error}") from error


_CIFAR10 = Recipe(epochs=50, augment=True)
_TINY_IMAGENET = Recipe(
    epochs=80, optimizer="sgd", lr=1e-2, weight_decay=5e-4, momentum=0.9, schedule="steps", augment=True
)

TABLE_1 = {"mnist": Recipe(), "mnist-5k": Recipe(), "cifar10": _CIFAR10, "tiny-imagenet": _TINY_IMAGENET}
"""Table 1 by data set, with the augmentation of the released code."""


def get_table_1_recipe(dataset: str) -> Recipe:
    """Return the row of Table 1 for a data set, that of MNIST for user data."""
    return TABLE_1.get(dataset, TABLE_1["mnist"])


def fast(dataset: str, epochs: int = 5) -> Recipe:
    """Return a one-cycle recipe of few epochs, not of the paper; its name appears in all results.

    Args:
        dataset: one of `TABLE_1`.
        epochs: passes over the training images.

    Returns:
        Recipe of Table 1 with a learning rate that rises and falls once. Tiny-ImageNet gets that of CIFAR-10, because
        noisy networks learn faster with Adam than with SGD.

    Examples:
        >>> fast("mnist-5k").schedule, fast("tiny-imagenet", epochs=3).optimizer
        ('one-cycle', 'adam')

    Source: Smith and Topin, Super-Convergence (2018).
    """
    base = TABLE_1["cifar10" if dataset == "tiny-imagenet" else dataset]
    lr = 3e-3 if dataset.startswith("mnist") else base.lr
    return replace(base, name="fast", epochs=epochs, lr=lr, schedule="one-cycle")


def compute_learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the weights at `step`, counted from 0 over the whole training.

    "steps" multiplies by 0.8 every 20 epochs (Table 1, Tiny-ImageNet). "one-cycle" rises linearly from lr/25 to lr over
    the first 30 % of all steps and falls along a cosine to lr/1000 at the last.

    Examples:
        >>> [round(compute_learning_rate(TABLE_1["tiny-imagenet"], epoch * 7, 7), 6) for epoch in (0, 19, 20, 40)]
        [0.01, 0.01, 0.008, 0.0064]
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "steps":
        return recipe.lr * 0.8 ** (step // steps_per_epoch // 20)
    last = max(recipe.epochs * steps_per_epoch - 1, 1)
    top = 0.3 * last
    if step < top:
        return recipe.lr * (1 / 25 + (1 - 1 / 25) * step / top)
    fall = (step - top) / (last - top)  # 0 at the top, 1 at the last step
    return recipe.lr * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * fall)) / 2)
