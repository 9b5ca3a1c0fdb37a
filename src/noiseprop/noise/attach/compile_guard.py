"""Mark noisy modules, so that `torch.compile` does not confuse them with modules without noise."""

from typing import Any

from torch import nn

_DICTS = ("_parameters", "_modules")


class MarkedDict(dict[str, Any]):
    """Parameters or children of a module with noise: a dict of another type, nothing more."""


def mark_for_compiler(module: nn.Module) -> None:
    """Make a module with noise differ from one without noise in a way that torch.compile compares.

    A compiled graph is reused for any module of the same structure, and hooks are not compared (see
    `torch._dynamo.config.skip_nnmodule_hook_guards`). A noisy model would run the graph of its noise-free twin, without
    noise. However, torch.compile compares the types of the dicts that hold a module's parameters and children. Call
    this for each parent of a noisy module, and for the model itself if it is noisy.
    """
    for name in _DICTS:
        if type(entries := getattr(module, name)) is dict:
            setattr(module, name, MarkedDict(entries))


def unmark_for_compiler(module: nn.Module) -> None:
    """Undo `mark_for_compiler`."""
    for name in _DICTS:
        if type(entries := getattr(module, name)) is MarkedDict:
            setattr(module, name, dict(entries))
