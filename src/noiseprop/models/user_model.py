"""A network of the user's own, by the function that makes it: "package.module:function".

Its code runs only where the user names it: a run folder's config.json names it too, but is never taken at its word.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError, suggest_name
from noiseprop.noise.attach.add_noise import add_noise, noise_layers
from noiseprop.noise.layer import Granularity, Init
from noiseprop.noise.sigma_adam import weights
from noiseprop.noise.stream import reset_noise

_CLASSES = ("classes", "num_classes")  # names under which a function may take the number of logits
_MOST_ELEMENTS = 100_000_000  # of an image


def is_user_model(name: str) -> bool:
    """Whether a network's name is that of a function, as no name of the paper is."""
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
    """Import a function, call it for a network, add noise, and try whether it takes the images.

    Args:
        name: "package.module:function", importable from the current folder or installed. The function takes nothing,
            or the number of classes; it may add noise itself.
        image: shape (C, H, W) of the images.
        classes: number of logits.
        seed: of the weights, as far as torch draws them, and of the noise.
        noise: where to add noise, as `add_noise` takes it: a group or names; nowhere if empty.
        granularity: of that noise, as for `add_noise`.
        init: sigma's start, as for `add_noise`.
        learn: whether sigma is learned.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes), in training mode.

    Raises:
        InputError: there is no such function, it fails, or what it returns is no such network.
    """
    if len(image) != 3 or min(image) < 1 or prod(image) > _MOST_ELEMENTS:
        raise InputError(f"{name}: images of shape {tuple(image)}, expected three numbers (C, H, W)")
    make = _find(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(name, make, classes)
        example = torch.rand(2, *image)
        _check(name, model, example, classes)
    if noise:
        where = noise[0] if len(noise) == 1 else tuple(noise)
        example = example.to(next(model.parameters()).device)
        add_noise(model, where, granularity=granularity, init=init, learn=learn, example=example, key=seed)
    if noise_layers(model):
        reset_noise(model, seed)
    return model.train()


def _find(name: str) -> Callable[..., Any]:
    """The function of a name; its module is looked for in the current folder first."""
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), path)):
        raise InputError(f"{name!r} names no function; write package.module:function, such as mynets:small")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{name}: there is no module {error.name} in {here} or installed; check name and folder"
            ) from error
        raise InputError(f"{name}: {_blame(error)}") from error
    except Exception as error:
        raise InputError(f"{name}: importing {module_name} failed: {_blame(error)}") from error
    found = getattr(module, path, None)
    if not callable(found):
        named = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            f"{name}: {module_name} has no function {path}; name one that returns a network{suggest_name(path, named)}"
        )
    return found


def _made(name: str, make: Callable[..., Any], classes: int) -> nn.Module:
    try:
        model = make(**_arguments(name, make, classes))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} failed: {_blame(error)}") from error
    if not isinstance(model, nn.Module):
        kind = "None" if model is None else type(model).__name__
        raise InputError(f"{name} returned {kind}, expected a torch.nn.Module")
    return model


def _arguments(name: str, make: Callable[..., Any], classes: int) -> dict[str, int]:
    """What to call a function with: the number of classes if it takes that."""
    try:
        parameters = signature(make).parameters
    except (TypeError, ValueError):
        return {}
    taken = next((key for key in _CLASSES if key in parameters), None)
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    if others := [key for key in needed if key != taken]:
        raise InputError(f"{name} needs {', '.join(others)}; name a function of no arguments, or of `classes` alone")
    return {} if taken is None else {taken: classes}


@torch.no_grad()
def _check(name: str, model: nn.Module, example: Tensor, classes: int) -> None:
    """Refuse a network that cannot be trained, or does not map images to logits."""
    model.eval()
    tensor = next(model.parameters(), None)
    x = example if tensor is None else example.to(tensor.device)
    shape = tuple(x.shape)
    try:
        logits = model(x)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not take images of shape {shape}: {_blame(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (len(x), classes):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{name} maps images {shape} to {got}, expected logits ({len(x)}, {classes}) for {classes} classes; "
            "let its function take `classes`, or take other data"
        )
    if not any(parameter.requires_grad for parameter in weights(model)):
        raise InputError(f"{name} has no parameters that could be trained; set requires_grad")


def _blame(error: Exception) -> str:
    """What went wrong in the user's code, and in which line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    theirs = [f for f in frames if f.filename.startswith(str(Path.cwd())) and "site-packages" not in f.filename]
    place = (theirs or frames or [None])[-1]
    where = f" ({Path(place.filename).name}, line {place.lineno})" if place else ""
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{f': {said}' if said else ''}{where}"
