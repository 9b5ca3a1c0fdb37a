"""Objectives of the noise by name and number, for commands and config.json."""

from collections.abc import Callable
from typing import Literal, cast

from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.objectives import EntropyBonus, FixedPower, Floor, Objective, SquareRootBonus
from noiseprop.noise.sigma_adam import sigmas
from noiseprop.training.run_config import ObjectiveConfig

ObjectiveName = Literal["floor", "power", "entropy", "square-root"]

_OBJECTIVES: dict[ObjectiveName, tuple[type[Objective], str]] = {
    "floor": (Floor, "floor"),
    "power": (FixedPower, "power"),
    "entropy": (EntropyBonus, "weight"),
    "square-root": (SquareRootBonus, "weight"),
}
_NAMES_WITHOUT_DEFAULT = ("floor", "entropy")


def make_objective(name: ObjectiveName, number: float | None, model: nn.Module) -> Objective:
    """Return an objective for the learned noise of a model.

    Args:
        name: "floor" (the smallest sigma), "power" (a fixed sum of sigma^2), "entropy" (a bonus of this weight) or
            "square-root" (Learn2Perturb's bonus, of this weight).
        number: the value in parentheses above; None means the current power of the model for "power" and 1e-4 for
            "square-root".
        model: the network, with learned noise.

    Raises:
        InputError: the number is missing or not above 0, or the model has no learned noise.
    """
    if number is None and name in _NAMES_WITHOUT_DEFAULT:
        raise InputError(f"the objective {name} needs a number: {_OBJECTIVES[name][1]}; give one above 0")
    made, field = _OBJECTIVES[name]
    make = cast("Callable[..., Objective]", made)
    return make(sigmas(model), **({} if number is None else {field: number}))


def describe_objective(objective: Objective) -> ObjectiveConfig:
    """Return the record of an objective: its class and its numbers before the first epoch.

    Examples:
        >>> import torch
        >>> describe_objective(SquareRootBonus([torch.ones(2)])).numbers
        {'weight': 0.0001, 'tau': 1.0, 'floor': 0.01}
    """
    objective.start_epoch(1)
    numbers: dict[str, int | float] = {}
    for name, value in vars(objective).items():
        if isinstance(value, Objective):
            numbers |= describe_objective(value).numbers
        elif isinstance(value, (int, float)):
            numbers[name] = value
    return ObjectiveConfig(type(objective).__name__, numbers)


def find_objective_name(config: ObjectiveConfig) -> tuple[ObjectiveName, float]:
    """Return the arguments of `make_objective` for a recorded objective.

    Raises:
        InputError: no name stands for the objective, so that only Python can make it.
    """
    for name, (made, field) in _OBJECTIVES.items():
        if config.name == made.__name__ and field in config.numbers:
            return name, float(config.numbers[field])
    raise InputError(f"the objective {config.name} has no name for commands; resume the run from Python")
