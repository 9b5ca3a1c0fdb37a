"""What makes `torch.compile` notice noise."""

from torch import nn


def show(module: nn.Module) -> None:
    """Make a module with noise differ from one without in a way that torch.compile looks at.

    A compiled graph is run again for any module of the same build, and hooks are not compared (see
    `torch._dynamo.config.skip_nnmodule_hook_guards`): a noisy model would run the graph of its noise-free twin, without
    noise. A `forward` of the module's own is compared, even if it is the one of its class.
    """
    module.__dict__.setdefault("forward", module.forward)


def hide(module: nn.Module) -> None:
    """Undo `show`."""
    own = module.__dict__.get("forward")
    if getattr(own, "__self__", None) is module and getattr(own, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]
