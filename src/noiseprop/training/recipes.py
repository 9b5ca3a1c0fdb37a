"""How a network is trained: the paper's Table 1, and a short recipe for trying things out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from noiseprop.errors import InputError

Precision = Literal["fp32", "bf16"]
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "steps", "one-cycle"]


@dataclass(frozen=True)
class Recipe:
    """Settings of one training; the defaults are Table 1's for MNIST.

    Attributes:
        name: what results made with it are called by.
        epochs: passes over the training images.
        batch_size: images of a step, in all processes together.
        optimizer: of the weights, "adam" or "sgd".
        lr: their learning rate, at its highest.
        weight_decay: L2, added to their gradient.
        momentum: of "sgd".
        schedule: of `lr`: "constant", "steps" (times 0.8 every 20 epochs) or "one-cycle"; see `learning_rate`.
        sigma_lr: learning rate of sigma, which follows Eq. 7 without decay or schedule.
        augment: random crop with padding 4, and flip.
        precision: "fp32", or "bf16" for autocast to bfloat16.

    Raises:
        InputError: a value is out of range or unknown.

    Source: Table 1 of Xiao, Zhang and Peng (2021).
    """

    name: str = "table1"
    epochs: int = 30
    batch_size: int = 128
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.0
    schedule: Schedule = "constant"
    sigma_lr: float = 1e-3
    augment: bool = False
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for field, least in (("epochs", 1), ("batch_size", 1), ("lr", 0), ("weight_decay", 0), ("sigma_lr", 0)):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= least):
                raise InputError(f"recipe: {field} must be at least {least}, got {value}")
        for field, known in (("optimizer", Optimizer), ("schedule", Schedule), ("precision", Precision)):
            if getattr(self, field) not in get_args(known):
                raise InputError(
                    f"recipe: {field} must be {' or '.join(get_args(known))}, got {getattr(self, field)!r}"
                )

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Recipe":
        """The recipe that config.json holds.

        Raises:
            InputError: it has other fields than a recipe has, or of other types, or out of range.
        """
        default = asdict(Recipe())
        if document.keys() != default.keys():
            raise InputError(f"recipe: its fields are {', '.join(document)}, expected {', '.join(default)}")
        for field, value in document.items():
            expected = type(default[field])
            if type(value) is not expected and not (expected is float and type(value) is int):
                raise InputError(f"recipe: {field} is {value!r}, expected a value such as {default[field]!r}")
        return Recipe(**document)


_CIFAR10 = Recipe(epochs=50, augment=True)
_TINY_IMAGENET = Recipe(
    epochs=80, optimizer="sgd", lr=1e-2, weight_decay=5e-4, momentum=0.9, schedule="steps", augment=True
)

TABLE_1 = {"mnist": Recipe(), "mnist-5k": Recipe(), "cifar10": _CIFAR10, "tiny-imagenet": _TINY_IMAGENET}
"""Table 1 by data set; the augmentation is the released code's."""


def table_1(dataset: str) -> Recipe:
    """Table 1's row of a data set, and MNIST's for data of the user's own."""
    return TABLE_1.get(dataset, TABLE_1["mnist"])


def fast(dataset: str, epochs: int = 5) -> Recipe:
    """A one-cycle recipe of few epochs, not the paper's; results made with it say so by its name.

    Args:
        dataset: one of `TABLE_1`.
        epochs: passes over the training images.

    Returns:
        Table 1's recipe with a learning rate that rises and falls once. Tiny-ImageNet has CIFAR-10's: by Adam more of
        the noisy networks learn in few epochs than by SGD.

    Examples:
        >>> fast("mnist-5k").schedule, fast("tiny-imagenet", epochs=3).optimizer
        ('one-cycle', 'adam')

    Source: Smith and Topin, Super-Convergence (2018).
    """
    base = TABLE_1["cifar10" if dataset == "tiny-imagenet" else dataset]
    lr = 3e-3 if dataset.startswith("mnist") else base.lr
    return replace(base, name="fast", epochs=epochs, lr=lr, schedule="one-cycle")


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The weights' learning rate at `step`, counted from 0 over the whole training.

    "steps" multiplies by 0.8 every 20 epochs (Table 1, Tiny-ImageNet). "one-cycle" rises linearly from lr/25 to lr over
    the first 30 % of all steps and falls along a cosine to lr/1000 at the last.

    Examples:
        >>> [round(learning_rate(TABLE_1["tiny-imagenet"], epoch * 7, 7), 6) for epoch in (0, 19, 20, 40)]
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
