"""Specify the shape, batch axis, device and dtype of the noise at each site, before anything is installed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.layouts import get_batch_axis, get_layout
from noiseprop.noise.attach.probe import ProbedOutput
from noiseprop.noise.attach.selectors import Site
from noiseprop.noise.layer import Granularity


@dataclass(frozen=True)
class NoiseSpec:
    """Shape and tensor type of the noise layer at a site."""

    site: Site
    shape: tuple[int, ...]  # of sigma
    batch_dim: int
    like: Tensor  # sigma gets its device, and float64 if `like` has it


def specify_from_types(
    model: nn.Module, sites: Sequence[Site], granularity: Granularity, batch_dim: int
) -> list[NoiseSpec] | None:
    """Specify the noise from the sizes that modules declare; return None if they do not suffice."""
    specs: list[NoiseSpec] = []
    for site in sites:
        layout = get_layout(site.module)
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
        specs.append(NoiseSpec(site, shape, _find_batch_dim(model, site, batch_dim), like))
    return specs


def specify_from_probe(
    model: nn.Module,
    sites: Sequence[Site],
    seen: dict[str, ProbedOutput],
    granularity: Granularity,
    batch_dim: int,
    samples: int | None,
) -> list[NoiseSpec]:
    """Specify the noise from the outputs that the probe saw; sites that were not called get none.

    `samples` is the size of the batch that the probe was called with, where it is known.

    Raises:
        InputError: a site that was selected by its path is never called, or its tensors cannot carry noise.
    """
    for site in sites:
        if site.named and site.path not in seen:
            raise InputError(
                f"{site} is never called as a module in a pass, so it has no output; select a module around it"
            )
    called = [site for site in sites if site.path in seen]
    if not called:
        raise InputError(
            f"{', '.join(map(str, sites))}: never called as modules in a pass; select a module around them"
        )
    specs = [_specify_noise(model, site, seen[site.path], granularity, batch_dim) for site in called]
    for site in called:
        _warn_about_shared_rows(site, seen[site.path].tensors[0], samples)
    return specs


def _specify_noise(
    model: nn.Module, site: Site, seen: ProbedOutput, granularity: Granularity, batch_dim: int
) -> NoiseSpec:
    axis = _find_batch_dim(model, site, batch_dim)
    for type_name in seen.others:
        raise InputError(
            f"{site} passes a {type_name} without a tensor, so noise cannot be added; select a module inside it"
        )
    for tensor in seen.tensors:
        _check_carrier(site, tensor, axis, _get_minimum_axes(model, site))
    first = seen.tensors[0]
    if axis == 0 and first.dim() > 2 and seen.time_first == tuple(first.shape[:2]) and first.shape[0] != first.shape[1]:
        raise InputError(
            f"{site}: outputs of shape {tuple(first.shape)} come from a time-first sequence (T, B, F), whose batch "
            "axis is 1; pass batch_dim=1, in a separate call of add_noise if other modules have their batch first"
        )
    neurons = [_remove_axis(tensor.shape, axis) for tensor in seen.tensors]
    if granularity == "neuron" and len(set(neurons)) > 1:
        raise InputError(
            f"{site} is called with different shapes in one pass, {_list_shapes(seen.tensors)}, so a sigma for each "
            "neuron does not fit; pass granularity='channel'"
        )
    shape = () if granularity == "layer" else neurons[0]
    if granularity == "channel":
        shape = _get_channel_shape(site, seen, axis)
    return NoiseSpec(site, shape, axis, first)


def _get_minimum_axes(model: nn.Module, site: Site) -> int:
    """Return the smallest number of axes of a batch for the module's type; torch accepts single samples too."""
    layout = get_layout(site.module)
    least = 1 if layout is None else 2 + (layout.after(site.module) or 0)
    return least if _find_known_batch_axis(model, site) is None else max(least, 3)


def _check_carrier(site: Site, tensor: Tensor, axis: int, least: int) -> None:
    what = (
        f"{site}: {tensor.dtype} of shape {tuple(tensor.shape)}" if not tensor.is_nested else f"{site}: a nested tensor"
    )
    if not tensor.is_floating_point():
        raise InputError(
            f"{what} cannot carry Gaussian noise, which needs real floating-point numbers; select another module"
        )
    if tensor.is_nested or tensor.layout != torch.strided:
        raise InputError(
            f"{what} and layout {tensor.layout} cannot carry noise; select a module that returns a dense tensor"
        )
    if tensor.dim() < least:
        raise InputError(f"{what} has no batch axis; call the model with a batch, at least of one sample")
    if tensor.dim() <= axis:
        raise InputError(f"{what} has no batch axis {axis}; call the model with a batch, or pass another batch_dim")


def _warn_about_shared_rows(site: Site, first: Tensor, samples: int | None) -> None:
    """Warn where one row serves all samples, as in position embeddings and tables of relative positions."""
    if isinstance(site.module, nn.Embedding) and samples and first.shape[0] % samples:
        warnings.warn(
            f"{site}: outputs of shape {tuple(first.shape)} for {samples} samples, as position embeddings have, so "
            "samples share their noise; select a module after the sum with the tokens instead",
            stacklevel=6,
        )


def _get_channel_shape(site: Site, seen: ProbedOutput, axis: int) -> tuple[int, ...]:
    """Return the shape of sigma: C at the channel axis, and 1 at the axes after it, which share a sigma."""
    shape = seen.tensors[0].shape
    layout = get_layout(site.module)
    channel = layout.channel if layout is not None else seen.channel
    if len(shape) <= 2:
        channel = -1
    if channel is None:
        raise InputError(
            f"{site}: the channel axis of outputs of shape {tuple(shape)} is unknown; pass granularity='neuron' or "
            "'layer', or select a module whose type has a known channel axis, such as Linear or Conv2d"
        )
    channel %= len(shape)
    if channel == axis:
        return ()
    return (shape[channel], *([1] * (len(shape) - channel - 1 - (axis > channel))))


def _find_batch_dim(model: nn.Module, site: Site, default: int) -> int:
    """Return the batch axis by the module types, or else the caller's."""
    axis = _find_known_batch_axis(model, site)
    return default if axis is None else axis


def _find_known_batch_axis(model: nn.Module, site: Site) -> int | None:
    """Return the batch axis that the module, or the nearest one around it, declares."""
    path = site.path
    while True:
        axis = get_batch_axis(model.get_submodule(path))
        if axis is not None or not path:
            return axis
        path = path.rpartition(".")[0]


def _remove_axis(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _list_shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(sorted({str(tuple(tensor.shape)) for tensor in tensors}))
