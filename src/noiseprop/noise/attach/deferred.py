"""A model whose noise waits for its first batch, because nothing else shows how many neurons there are."""

# torch has no public way to find or replace a hook:
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.attach import compile_guard as compiling

_REMEDY = "call the model once, as model(x), or pass example=x to add_noise"


class FirstBatch:
    """A forward pre-hook that gives a model its noise when it is first called.

    Args:
        attach: called with the model and the call's two kinds of arguments; it starts the pass as well.
    """

    def __init__(self, attach: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]) -> None:
        self.attach = attach

    def wait(self, model: nn.Module) -> None:
        """Become a hook of the model."""
        model.register_forward_pre_hook(self, with_kwargs=True)
        compiling.show(model)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Give way to the noise; if that fails, go on waiting."""
        if torch.compiler.is_compiling():
            raise InputError(
                f"the noise of {type(model).__name__} waits for a first batch; {_REMEDY} before compiling it"
            )
        (number,) = forget_first_batch(model)
        try:
            self.attach(model, args, kwargs)
        except Exception:
            model._forward_pre_hooks[number], model._forward_pre_hooks_with_kwargs[number] = self, True
            compiling.show(model)
            raise


def waits(model: nn.Module) -> bool:
    """Whether a model, or a part of it, has noise that waits for a first batch."""
    return any(
        isinstance(hook, FirstBatch) for module in model.modules() for hook in module._forward_pre_hooks.values()
    )


def refuse_waiting(model: nn.Module) -> None:
    """Raise an InputError where the noise is asked for that does not exist yet."""
    if waits(model):
        raise InputError(
            f"the noise of {type(model).__name__} waits for the shapes of a first batch; {_REMEDY} before this"
        )


def forget_first_batch(model: nn.Module) -> list[int]:
    """Take the hook away again; returns its number, if there was one."""
    numbers = [number for number, hook in model._forward_pre_hooks.items() if isinstance(hook, FirstBatch)]
    for number in numbers:
        del model._forward_pre_hooks[number], model._forward_pre_hooks_with_kwargs[number]
        compiling.hide(model)
    return numbers
