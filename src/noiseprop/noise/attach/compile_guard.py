"""What makes `torch.compile` notice noise."""

from typing import Any

from torch import nn

_DICTS = ("_parameters", "_modules")


class Shown(dict[str, Any]):
    """The parameters or the children of a module that noise stands on or in: a dict of another type, nothing more."""


def show(module: nn.Module) -> None:
    """Make a module with noise differ from one without in a way that torch.compile looks at.

    A compiled graph is run again for any module of the same build, and hooks are not compared (see
    `torch._dynamo.config.skip_nnmodule_hook_guards`): a noisy model would run the graph of its noise-free twin, without
    noise. The types of the dicts in which a module's parameters and children are looked up are compared. To be called
    for the module that the noise stands on where it is the whole model, and else for the one that holds that module.
    """
    for name in _DICTS:
        if type(module.__dict__[name]) is dict:
            module.__dict__[name] = Shown(module.__dict__[name])


def hide(module: nn.Module) -> None:
    """Undo `show`."""
    for name in _DICTS:
        if type(module.__dict__[name]) is Shown:
            module.__dict__[name] = dict(module.__dict__[name])
