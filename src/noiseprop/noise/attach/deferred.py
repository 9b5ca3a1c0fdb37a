"""Defer noise until a model's first batch, where only that shows how many neurons there are."""

# torch has no public way to find or replace a hook:
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.compile_guard import mark_for_compiler, unmark_for_compiler

_REMEDY = "call the model once, as model(x), or pass example=x to add_noise"


class DeferredNoise:
    """Forward pre-hook that adds noise to a model at its first call.

    Args:
        attach: called with the model, its positional and its keyword arguments; it starts the pass as well.
    """

    def __init__(self, attach: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]) -> None:
        self.attach = attach

    def register_on(self, model: nn.Module) -> None:
        """Register this hook on the model."""
        model.register_forward_pre_hook(self, with_kwargs=True)
        mark_for_compiler(model)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Replace this hook by the noise; if that fails, keep the hook."""
        if torch.compiler.is_compiling():
            raise InputError(f"the noise of {type(model).__name__} needs a first batch; {_REMEDY} before compiling it")
        (number,) = remove_deferred_noise(model)
        try:
            self.attach(model, args, kwargs)
        except Exception:
            model._forward_pre_hooks[number], model._forward_pre_hooks_with_kwargs[number] = self, True
            mark_for_compiler(model)
            raise


def has_deferred_noise(model: nn.Module) -> bool:
    """Return whether a model, or a part of it, has noise that is deferred until a first batch."""
    return any(
        isinstance(hook, DeferredNoise) for module in model.modules() for hook in module._forward_pre_hooks.values()
    )


def check_noise_exists(model: nn.Module) -> None:
    """Raise an InputError if the noise of a model, or of a part of it, is deferred."""
    if has_deferred_noise(model):
        raise InputError(
            f"the noise of {type(model).__name__} needs the shapes of a first batch; {_REMEDY} before this"
        )


def remove_deferred_noise(model: nn.Module) -> list[int]:
    """Remove the hook of deferred noise; return its number in a list, which is empty without one."""
    numbers = [number for number, hook in model._forward_pre_hooks.items() if isinstance(hook, DeferredNoise)]
    for number in numbers:
        del model._forward_pre_hooks[number], model._forward_pre_hooks_with_kwargs[number]
        unmark_for_compiler(model)
    return numbers
