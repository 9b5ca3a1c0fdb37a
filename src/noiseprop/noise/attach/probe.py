"""One pass in eval mode that shows what a model's modules return, and leaves no trace."""

import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map_only

from noiseprop.errors import InputError
from noiseprop.noise.attach.hooks import first_tensor, sequence_tensor
from noiseprop.noise.attach.layouts import batch_axis, layout_of
from noiseprop.noise.attach.selectors import RUNS_CHILDREN, Site
from noiseprop.noise.sampling import sampling


@dataclass
class ProbedOutput:
    """What the probe saw at a site.

    Attributes:
        tensors: the tensor of each call that noise would be added to; their shapes, dtypes and devices count.
        others: the types of what the module returned or got where there was no tensor.
        channel: the axis of channels of the layer that ran last before the site, if it has as many axes.
        time_first: sizes (T, B) of the time-first module that ran last before the site.
    """

    tensors: list[Tensor] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    channel: int | None = None
    time_first: tuple[int, int] | None = None


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as a call's arguments: a tuple or list holds positional ones, a mapping those by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list) and not isinstance(example, PackedSequence):
        return tuple(example), {}
    return (example,), {}


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: int) -> int | None:
    """How many samples a call has, by the first tensor in it."""
    tensor = first_tensor((args, kwargs))
    return tensor.shape[batch_dim] if tensor is not None and tensor.dim() > batch_dim else None


def probe(model: nn.Module, sites: Sequence[Site], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, ProbedOutput]:
    """Call the model once and report what passes at the sites; one that is never called is left out.

    Raises:
        InputError: the model cannot be called so, or a site's module runs all its children, and so would run its noise.
    """
    seen: dict[str, ProbedOutput] = {}
    with ExitStack() as stack:
        stack.enter_context(_preserve_state(model))
        stack.enter_context(_listening(model, sites, seen))
        try:
            # copies, as a model may change its inputs in place, and a first batch is still to be used
            args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
            model(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} could not be called with the example ({type(error).__name__}: {error}); pass "
                "the inputs that it takes as example=x, example=(x, y) or example={'x': x}"
            ) from error
    return seen


@contextmanager
def _listening(model: nn.Module, sites: Sequence[Site], seen: dict[str, ProbedOutput]) -> Generator[None]:
    """Hooks at the sites and at all modules whose layout is known, which tell the sites that do not know theirs."""
    last: dict[str, Any] = {}

    def note(site: Site, value: Any) -> None:
        entry = seen.setdefault(site.path, ProbedOutput())
        tensor = first_tensor(value)
        if tensor is None:
            entry.others.append(type(value).__name__)
            return
        entry.tensors.append(tensor)
        if last.get("axes") == tensor.dim():
            entry.channel = last["channel"]
        entry.time_first = last.get("time_first")

    def track(module: nn.Module, args: Any, output: Any) -> None:
        layout, tensor = layout_of(module), first_tensor(output)
        if tensor is None:
            return
        if layout is not None:
            last["channel"], last["axes"] = layout.channel, tensor.dim()
        if batch_axis(module) == 1 and tensor.dim() == 3:
            last["time_first"] = tuple(tensor.shape[:2])

    def output_hook(site: Site) -> Any:
        if isinstance(site.module, nn.RNNBase):
            return lambda m, args, output: note(site, sequence_tensor(output[0], m, site.path))
        return lambda m, args, output: note(site, output)

    handles: list[Any] = []
    for site in sites:
        if site.before:
            hook = lambda m, args, kwargs, site=site: note(site, (args, kwargs))  # noqa: E731
            handles.append(site.module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(site.module.register_forward_hook(output_hook(site)))
        site.module.add_module("noise", _Sentinel(str(site)))
    for module in model.modules():
        if layout_of(module) is not None or batch_axis(module) is not None:
            handles.append(module.register_forward_hook(track))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for site in sites:
            del site.module.noise


class _Sentinel(nn.Module):
    """Stands where the noise will be, to see whether the module's own forward would run it as one of its children."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise InputError(f"{self.path} {RUNS_CHILDREN}")


@contextmanager
def _preserve_state(model: nn.Module) -> Generator[None]:
    """Eval mode without noise and gradients; modes, buffers and random states return to what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]  # pyright: ignore[reportPrivateUsage]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    fast = torch.backends.mha.get_fastpath_enabled()
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(sampling(model, "off"))
        stack.enter_context(torch.no_grad())
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it would pass nested tensors, or none, to the hooks
            for module in model.modules():
                module.training = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, training in modes:
                module.training = training
            for module, named in buffers:
                module._buffers.clear()  # pyright: ignore[reportPrivateUsage]
                module._buffers.update(named)  # pyright: ignore[reportPrivateUsage]
            for buffer, value in values:
                if not _equal(buffer, value):  # as it would change a tensor that some graph has saved
                    buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)


def _equal(buffer: Tensor, value: Tensor) -> bool:
    """Whether two buffers hold the same; sparse ones, which torch.equal does not take, count as changed."""
    return buffer.layout == torch.strided and torch.equal(buffer, value)
