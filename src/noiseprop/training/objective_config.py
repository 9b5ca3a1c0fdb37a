"""Objectives of the noise by name and number, as commands and config.json have them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.objectives import EntropyBonus, FixedPower, Floor, Objective, SquareRootBonus
from noiseprop.noise.sigma_adam import sigmas

ObjectiveName = Literal["floor", "power", "entropy", "square-root"]

_NAMED: dict[ObjectiveName, tuple[type[Objective], str]] = {
    "floor": (Floor, "floor"),
    "power": (FixedPower, "power"),
    "entropy": (EntropyBonus, "weight"),
    "square-root": (SquareRootBonus, "weight"),
}
_NEED_A_NUMBER = ("floor", "entropy")


def named_objective(name: ObjectiveName, number: float | None, model: nn.Module) -> Objective:
    """An objective for the learned noise of a model.

    Args:
        name: "floor" (the smallest sigma), "power" (a fixed sum of sigma^2), "entropy" (a bonus of this weight) or
            "square-root" (Learn2Perturb's bonus, of this weight).
        number: what the name has in brackets; None is for "power" what the model has now, and for "square-root" 1e-4.
        model: the network, with learned noise.

    Raises:
        InputError: the number is missing or not above 0, or the model has no learned noise.
    """
    if number is None and name in _NEED_A_NUMBER:
        raise InputError(f"the objective {name} needs a number: {_NAMED[name][1]}; give one above 0")
    made, field = _NAMED[name]
    make = cast("Callable[..., Objective]", made)
    return make(sigmas(model), **({} if number is None else {field: number}))


def described(objective: Objective) -> dict[str, Any]:
    """The class and the numbers of an objective before its first epoch, JSON-able.

    Examples:
        >>> import torch
        >>> described(SquareRootBonus([torch.ones(2)]))
        {'name': 'SquareRootBonus', 'weight': 0.0001, 'tau': 1.0, 'floor': 0.01}
    """
    objective.start_epoch(1)
    numbers: dict[str, Any] = {"name": type(objective).__name__}
    for name, value in vars(objective).items():
        if isinstance(value, Objective):
            numbers |= {key: number for key, number in described(value).items() if key != "name"}
        elif isinstance(value, (int, float)):
            numbers[name] = value
    return numbers


def name_and_number(description: Mapping[str, Any]) -> tuple[ObjectiveName, float]:
    """What to give `named_objective` for the objective that `described` told of.

    Raises:
        InputError: it has no name here, so that only Python can make it.
    """
    for name, (made, field) in _NAMED.items():
        if description.get("name") == made.__name__ and isinstance(description.get(field), (int, float)):
            return name, float(description[field])
    raise InputError(f"the objective {description.get('name')} has no name for commands; go on with it from Python")
