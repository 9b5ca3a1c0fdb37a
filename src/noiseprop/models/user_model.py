"""User-defined networks by the function that makes them: "package.module:function".

Their code runs only if the user names them. The config.json of a run folder names them, too, but is not trusted.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from noiseprop.errors import InputError, suggest_name
from noiseprop.models.trial import check_pass, check_training_step, describe_exception
from noiseprop.noise.attach.add_noise import add_noise, noise_layers
from noiseprop.noise.layer import Granularity, Init
from noiseprop.noise.sigma_adam import weights
from noiseprop.noise.stream import reset_noise

_CLASS_PARAMETERS = ("classes", "num_classes")  # names under which a function may take the number of logits
_MAX_IMAGE_SIZE = 100_000_000  # elements


_Length = Annotated[int, msgspec.Meta(ge=1, le=10**6)]


class UserModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="user"):
    """Arguments of `make_user_model`, as run folders hold them."""

    name: Annotated[str, msgspec.Meta(max_length=1000)]
    image: tuple[_Length, _Length, _Length]
    classes: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    noise: tuple[str, ...] = ()
    granularity: Granularity = "neuron"
    init: float | Literal["normal"] = 1.0
    learn: bool = True


def is_user_model(name: str) -> bool:
    """Return whether the name of a network is that of a function, unlike the names of the paper."""
    return ":" in name


def make_user_model(
    name: str,
    *,
    image: Sequence[int],
    classes: int,
    seed: int = 0,
    noise: Sequence[str] = (),
    granularity: Granularity = "neuron",
    init: Init = 1.0,
    learn: bool = True,
) -> nn.Module:
    """Return a network from a user-defined function, with noise, and check that it takes the images.

    Args:
        name: "package.module:function", importable from the current folder or installed. The function takes no
            arguments or the number of classes; it may add noise itself.
        image: shape (C, H, W) of the images.
        classes: number of logits.
        seed: seed of the weights, as far as torch draws them, and of the noise.
        noise: where to add noise, a group or names as for `add_noise`; empty for nowhere.
        granularity: granularity of that noise, as for `add_noise`.
        init: first value of sigma, as for `add_noise`.
        learn: whether sigma is learned.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes), in training mode.

    Raises:
        InputError: the function does not exist or fails, or its network does not take the images, does not return
            logits, or cannot be trained.
    """
    if len(image) != 3 or min(image) < 1 or prod(image) > _MAX_IMAGE_SIZE:
        raise InputError(f"{name}: images of shape {tuple(image)}, expected three numbers (C, H, W) from 1 up")
    make = _import_function(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _call_function(name, make, classes)
        example = torch.rand(2, *image)
        _check_network(name, model, example, classes)
    if noise:
        where = noise[0] if len(noise) == 1 else tuple(noise)
        example = example.to(next(model.parameters()).device)
        add_noise(model, where, granularity=granularity, init=init, learn=learn, example=example, key=seed)
    if noise_layers(model):
        reset_noise(model, seed)
    return model.train()


def _import_function(name: str) -> Callable[..., Any]:
    """Return the function of a name; its module is searched in the current folder first."""
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), path)):
        raise InputError(f"{name!r} does not name a function; write package.module:function, such as mynets:small")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{name}: module {error.name} was not found in {here} or installed; check name and folder"
            ) from error
        raise InputError(f"{name}: {describe_exception(error)}") from error
    except Exception as error:
        raise InputError(f"{name}: importing {module_name} failed: {describe_exception(error)}") from error
    found = getattr(module, path, None)
    if not callable(found):
        named = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            f"{name}: {module_name} has no function {path}; name one that returns a network{suggest_name(path, named)}"
        )
    return found


def _call_function(name: str, make: Callable[..., Any], classes: int) -> nn.Module:
    try:
        model = make(**_choose_arguments(name, make, classes))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} failed: {describe_exception(error)}") from error
    if not isinstance(model, nn.Module):
        kind = "None" if model is None else type(model).__name__
        raise InputError(f"{name} returned {kind}, expected a torch.nn.Module")
    return model


def _choose_arguments(name: str, make: Callable[..., Any], classes: int) -> dict[str, int]:
    """Return the arguments of a function: the number of classes if it takes that."""
    try:
        parameters = signature(make).parameters
    except (TypeError, ValueError):
        return {}
    taken = next((key for key in _CLASS_PARAMETERS if key in parameters), None)
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    if others := [key for key in needed if key != taken]:
        raise InputError(
            f"{name} needs {', '.join(others)}; name a function that takes no arguments or `classes` alone"
        )
    return {} if taken is None else {taken: classes}


def _check_network(name: str, model: nn.Module, example: Tensor, classes: int) -> None:
    """Check that a network maps images to logits in both modes and can be trained; lazy modules get their shapes."""
    tensor = next(model.parameters(), None)
    x = example if tensor is None else example.to(tensor.device)
    with torch.no_grad():
        check_pass(name, model, x, classes, training=False)
    if not any(parameter.requires_grad for parameter in weights(model)):
        raise InputError(f"{name} has no parameters that could be trained; set requires_grad")
    check_training_step(name, model, x, classes)
