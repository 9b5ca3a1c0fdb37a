"""The shape, batch axis, device and dtype of the noise at each site: all checks that need no change to the model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.layouts import batch_axis, layout_of
from noiseprop.noise.attach.probe import ProbedOutput
from noiseprop.noise.attach.selectors import Site
from noiseprop.noise.layer import Granularity


@dataclass(frozen=True)
class Plan:
    """What the noise layer of a site is made of."""

    site: Site
    shape: tuple[int, ...]  # of sigma
    batch_dim: int
    like: Tensor  # sigma gets its device, and float64 if it has that


def plan_unseen(model: nn.Module, sites: Sequence[Site], granularity: Granularity, batch_dim: int) -> list[Plan] | None:
    """Plan from what the modules say of themselves; None if that is not enough."""
    plans: list[Plan] = []
    for site in sites:
        layout = layout_of(site.module)
        if granularity == "neuron" or layout is None or site.before:
            return None
        after = layout.after(site.module)
        if granularity == "layer":
            shape = ()
        elif after is None:
            return None
        else:
            shape = (layout.channels(site.module), *([1] * after))
        like = next((p for m in (site.module, model) for p in m.parameters()), torch.empty(()))
        plans.append(Plan(site, shape, _batch_dim(model, site, batch_dim), like))
    return plans


def plan_seen(
    model: nn.Module,
    sites: Sequence[Site],
    seen: dict[str, ProbedOutput],
    granularity: Granularity,
    batch_dim: int,
    samples: int | None,
) -> list[Plan]:
    """Plan from what the probe saw; modules that were not called, and not named outright either, get no noise.

    `samples` is the size of the batch that the probe was called with, where it is known.

    Raises:
        InputError: a site is never called, or what passes there cannot carry noise.
    """
    for site in sites:
        if site.named and site.path not in seen:
            raise InputError(
                f"{site} is never called as a module in a pass, so it has no output; name a module around it"
            )
    called = [site for site in sites if site.path in seen]
    if not called:
        raise InputError(f"{', '.join(map(str, sites))}: never called as modules in a pass; name a module around them")
    plans = [_plan(model, site, seen[site.path], granularity, batch_dim) for site in called]
    for site in called:
        _warn_of_shared_rows(site, seen[site.path].tensors[0], samples)
    return plans


def _plan(model: nn.Module, site: Site, seen: ProbedOutput, granularity: Granularity, batch_dim: int) -> Plan:
    axis = _batch_dim(model, site, batch_dim)
    for type_name in seen.others:
        raise InputError(
            f"{site} passes a {type_name} without a tensor, so nothing could carry noise; name a module inside it"
        )
    for tensor in seen.tensors:
        _check(site, tensor, axis, _least_axes(model, site))
    first = seen.tensors[0]
    if axis == 0 and first.dim() > 2 and seen.time_first == tuple(first.shape[:2]) and first.shape[0] != first.shape[1]:
        raise InputError(
            f"{site}: outputs of shape {tuple(first.shape)} come from a time-first sequence (T, B, F), whose batch "
            "axis is 1; pass batch_dim=1, in a call of add_noise of its own if other modules have their batch first"
        )
    neurons = [_without(tensor.shape, axis) for tensor in seen.tensors]
    if granularity == "neuron" and len(set(neurons)) > 1:
        raise InputError(
            f"{site} is called with different shapes in one pass, {_listed(seen.tensors)}, so a sigma for each neuron "
            "does not fit; pass granularity='channel'"
        )
    shape = () if granularity == "layer" else neurons[0]
    if granularity == "channel":
        shape = _channel_shape(site, seen, axis)
    return Plan(site, shape, axis, first)


def _least_axes(model: nn.Module, site: Site) -> int:
    """How many axes there are where samples come in a batch, so far as types tell: torch takes single samples too."""
    layout = layout_of(site.module)
    least = 1 if layout is None else 2 + (layout.after(site.module) or 0)
    return least if _known_batch_axis(model, site) is None else max(least, 3)


def _check(site: Site, tensor: Tensor, axis: int, least: int) -> None:
    what = (
        f"{site}: {tensor.dtype} of shape {tuple(tensor.shape)}" if not tensor.is_nested else f"{site}: a nested tensor"
    )
    if not tensor.is_floating_point():
        raise InputError(
            f"{what} cannot carry Gaussian noise, which needs real floating-point numbers; name another module"
        )
    if tensor.is_nested or tensor.layout != torch.strided:
        raise InputError(
            f"{what} and layout {tensor.layout} cannot carry noise; name a module that returns a dense tensor"
        )
    if tensor.dim() < least:
        raise InputError(f"{what} has no batch axis, so noise has no samples; call the model with a batch, if of one")
    if tensor.dim() <= axis:
        raise InputError(f"{what} has no batch axis {axis}; call the model with a batch, or pass another batch_dim")


def _warn_of_shared_rows(site: Site, first: Tensor, samples: int | None) -> None:
    """Position embeddings, and tables of relative positions, are looked up once for all samples."""
    if isinstance(site.module, nn.Embedding) and samples and first.shape[0] % samples:
        warnings.warn(
            f"{site}: outputs of shape {tuple(first.shape)} for {samples} samples, as position embeddings have, so "
            "samples share their noise; name a module after the sum with the tokens instead",
            stacklevel=6,
        )


def _channel_shape(site: Site, seen: ProbedOutput, axis: int) -> tuple[int, ...]:
    """C where the channels stand, and 1 on the axes that share a sigma; leading ones are left out."""
    shape = seen.tensors[0].shape
    layout = layout_of(site.module)
    channel = layout.channel if layout is not None else seen.channel
    if len(shape) <= 2:
        channel = -1
    if channel is None:
        raise InputError(
            f"{site}: no layer before it tells which axis of {tuple(shape)} counts channels; "
            "pass granularity='neuron' or 'layer', or name a module whose type says it"
        )
    channel %= len(shape)
    if channel == axis:
        return ()
    return (shape[channel], *([1] * (len(shape) - channel - 1 - (axis > channel))))


def _batch_dim(model: nn.Module, site: Site, default: int) -> int:
    """The batch axis: what types say, or else the caller."""
    axis = _known_batch_axis(model, site)
    return default if axis is None else axis


def _known_batch_axis(model: nn.Module, site: Site) -> int | None:
    """What the module, or the nearest one around it that knows, says."""
    path = site.path
    while True:
        axis = batch_axis(model.get_submodule(path))
        if axis is not None or not path:
            return axis
        path = path.rpartition(".")[0]


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(sorted({str(tuple(tensor.shape)) for tensor in tensors}))
