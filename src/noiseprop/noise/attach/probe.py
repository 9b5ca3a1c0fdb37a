"""Run one pass in eval mode to record the outputs of a model's modules, and leave the model as it was."""

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
from noiseprop.noise.attach.hooks import find_first_tensor, get_sequence_tensor
from noiseprop.noise.attach.layouts import get_batch_axis, get_layout
from noiseprop.noise.attach.selectors import RUNS_CHILDREN, Site
from noiseprop.noise.module_state import preserve_modes
from noiseprop.noise.sampling import sampling


@dataclass
class ProbedOutput:
    """Tensors that the probe saw at a site.

    Attributes:
        tensors: one per call, the tensor that noise would be added to.
        others: type names of the outputs or inputs without a tensor.
        channel: channel axis of the layer that ran last before the site, if its output has as many axes.
        time_first: sizes (T, B) of the time-first module that ran last before the site.
    """

    tensors: list[Tensor] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    channel: int | None = None
    time_first: tuple[int, int] | None = None


def split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of an example: a tensor, a tuple or list, or a mapping."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list) and not isinstance(example, PackedSequence):
        return tuple(example), {}
    return (example,), {}


def get_batch_size(args: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: int) -> int | None:
    """Return the number of samples of a call by its first tensor, or None if that has no batch axis."""
    tensor = find_first_tensor((args, kwargs))
    return tensor.shape[batch_dim] if tensor is not None and tensor.dim() > batch_dim else None


def probe_model(
    model: nn.Module, sites: Sequence[Site], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, ProbedOutput]:
    """Call the model once and return the tensors at the sites by path; a site that is never called is left out.

    Raises:
        InputError: the call fails, or a site's module runs all its children, which would include its noise.
    """
    seen: dict[str, ProbedOutput] = {}
    with ExitStack() as stack:
        stack.enter_context(_preserve_state(model))
        stack.enter_context(_record_outputs(model, sites, seen))
        try:
            # copies, because a model may change its inputs in place, and a first batch is used again
            args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
            model(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} could not be called with the example ({type(error).__name__}: {error}); pass "
                "the model's inputs as example=x, example=(x, y) or example={'x': x}"
            ) from error
    return seen


@contextmanager
def _record_outputs(model: nn.Module, sites: Sequence[Site], seen: dict[str, ProbedOutput]) -> Generator[None]:
    """Record tensors at the sites by hooks, and the axes of modules with known layouts that run before them."""
    last: dict[str, Any] = {}

    def record_site(site: Site, value: Any) -> None:
        entry = seen.setdefault(site.path, ProbedOutput())
        tensor = find_first_tensor(value)
        if tensor is None:
            entry.others.append(type(value).__name__)
            return
        entry.tensors.append(tensor)
        if last.get("axes") == tensor.dim():
            entry.channel = last["channel"]
        entry.time_first = last.get("time_first")

    def track_axes(module: nn.Module, args: Any, output: Any) -> None:
        layout, tensor = get_layout(module), find_first_tensor(output)
        if tensor is None:
            return
        if layout is not None:
            last["channel"], last["axes"] = layout.channel, tensor.dim()
        if get_batch_axis(module) == 1 and tensor.dim() == 3:
            last["time_first"] = tuple(tensor.shape[:2])

    def output_hook(site: Site) -> Any:
        if isinstance(site.module, nn.RNNBase):
            return lambda m, args, output: record_site(site, get_sequence_tensor(output[0], m, site.path))
        return lambda m, args, output: record_site(site, output)

    handles: list[Any] = []
    for site in sites:
        if site.before:
            hook = lambda m, args, kwargs, site=site: record_site(site, (args, kwargs))  # noqa: E731
            handles.append(site.module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(site.module.register_forward_hook(output_hook(site)))
        site.module.add_module("noise", _ForwardSentinel(str(site)))
    for module in model.modules():
        if get_layout(module) is not None or get_batch_axis(module) is not None:
            handles.append(module.register_forward_hook(track_axes))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for site in sites:
            del site.module.noise


class _ForwardSentinel(nn.Module):
    """Module in the place of the noise, which raises an error if a `forward` runs it as one of its children."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise InputError(f"{self.path} {RUNS_CHILDREN}")


@contextmanager
def _preserve_state(model: nn.Module) -> Generator[None]:
    """Set eval mode without noise and gradients; restore modes, buffers and random states afterwards."""
    buffers = [(module, dict(module._buffers)) for module in model.modules()]  # pyright: ignore[reportPrivateUsage]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    fast = torch.backends.mha.get_fastpath_enabled()
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(sampling(model, "off"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserve_modes(model, training=None))
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # the fast path hides tensors from hooks, or nests them
            for module in model.modules():
                module.training = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, named in buffers:
                module._buffers.clear()  # pyright: ignore[reportPrivateUsage]
                module._buffers.update(named)  # pyright: ignore[reportPrivateUsage]
            for buffer, value in values:
                if not _have_equal_values(buffer, value):  # a copy would change tensors saved in a graph
                    buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)


def _have_equal_values(buffer: Tensor, value: Tensor) -> bool:
    """Return whether two buffers are equal; sparse ones, which torch.equal does not support, count as changed."""
    return buffer.layout == torch.strided and torch.equal(buffer, value)
