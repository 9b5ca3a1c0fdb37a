"""Noise layers in their places: hook, child module, stream; and away again without a trace."""

# torch has no public way to list or remove the hooks of a module:
# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.attach import compile_guard as compiling
from noiseprop.noise.attach.hooks import add_by_input, add_to_input, add_to_output, add_to_sequence
from noiseprop.noise.attach.noise_specs import Plan
from noiseprop.noise.attach.selectors import Site
from noiseprop.noise.layer import Estimator, Granularity, Init, NeuronNoise
from noiseprop.noise.sampling import forget_prefix
from noiseprop.noise.stream import NoiseStream

_HOOKS = (add_to_output, add_to_input, add_to_sequence, add_by_input)


@dataclass(frozen=True)
class Settings:
    """How the noise that one call of `add_noise` adds is made."""

    granularity: Granularity = "neuron"
    init: Init = 1.0
    learn: bool = True
    mean: bool = False
    at_inference: bool = True
    key: int = 0
    batch_dim: int = 0
    estimator: Estimator = "pathwise"
    make: Callable[..., NeuronNoise] = NeuronNoise


@torch.inference_mode(False)  # what is made here shall be trained, even if the first batch came for inference only
def put(model: nn.Module, plans: Sequence[Plan], settings: Settings) -> NoiseStream:
    """Put noise layers of the planned shapes in their places; all that can fail has been checked before."""
    stream = own_stream(model)
    first = 1 + max((layer.number for _, layer in placed(model)), default=-1)
    if stream is None:
        stream = NoiseStream(settings.key)
        stream.to(plans[0].like.device)
    generator = torch.Generator().manual_seed((settings.key + first) % 2**64)
    layers = [_new_layer(plan, settings, generator) for plan in plans]
    for number, (plan, layer) in enumerate(zip(plans, layers, strict=True), start=first):
        layer.bind(stream, number)
        module = plan.site.module
        module.add_module("noise", layer)
        if plan.site.before:
            module.register_forward_pre_hook(add_to_input, with_kwargs=True)
        elif hasattr(layer, "add_by_input"):
            module.register_forward_hook(add_by_input, with_kwargs=True, prepend=True)
        else:  # ahead of hooks that note outputs, as transformers' own do, so that they note the noise too
            hook = add_to_sequence if isinstance(module, nn.RNNBase) else add_to_output
            module.register_forward_hook(hook, prepend=True)
    if first == 0:
        model.register_forward_pre_hook(stream.begin, prepend=True)  # ahead of noise on the model's own input
    noisy = {module for _, module in _noisy_modules(model)}
    for module in model.modules():
        if not noisy.isdisjoint(module.children()) or (module is model and module in noisy):
            compiling.show(module)
    _keep_dense(model, noisy)
    forget_prefix(model)
    return stream


def take_away(model: nn.Module) -> None:
    """Undo every `put` on a model."""
    stream = own_stream(model)
    for _, module in list(_noisy_modules(model)):
        _drop_hooks(module, lambda hook: hook in _HOOKS)
        del module.noise
    _drop_hooks(model, lambda hook: stream is not None and getattr(hook, "__self__", None) is stream)
    for module in model.modules():
        compiling.hide(module)
        if module.__dict__.pop("_nested_without_noise", False):
            module.__dict__["use_nested_tensor"] = True
    forget_prefix(model)


def placed(model: nn.Module) -> list[tuple[Site, NeuronNoise]]:
    """The noise layers that were put into a model, with their sites, in the order of their numbers in the stream."""
    layers = [
        (Site(path, module, before=add_to_input in module._forward_pre_hooks.values()), cast(NeuronNoise, module.noise))
        for path, module in _noisy_modules(model)
    ]
    return sorted(layers, key=lambda entry: entry[1].number)


def own_stream(model: nn.Module) -> NoiseStream | None:
    """The stream of the noise that was added to just this model; an error if there is noise of another's."""
    begun = {id(getattr(hook, "__self__", None)) for hook in model._forward_pre_hooks.values()}
    own = None
    for path, module in _noisy_modules(model):
        stream = cast(NeuronNoise, module.noise).stream
        if id(stream) not in begun:
            raise InputError(
                f"the noise of {path or 'the model itself'} was not added to this {type(model).__name__} as a whole, "
                "but to a larger model or to a part of it; call remove_noise on that one first"
            )
        own = stream
    return own


def _new_layer(plan: Plan, settings: Settings, generator: torch.Generator) -> NeuronNoise:
    init, normal = settings.init, settings.init == "normal"
    with torch.random.fork_rng(devices=[]):
        layer = settings.make(
            plan.shape,
            init=1.0 if normal else init,
            learn=settings.learn,
            mean=settings.mean,
            at_inference=settings.at_inference,
            batch_dim=plan.batch_dim,
            estimator=settings.estimator,
        )
        if normal:
            layer.sigma.data.normal_(generator=generator)
        layer.to(plan.like.device, torch.float64 if plan.like.dtype == torch.float64 else torch.float32)
    layer.path, layer.granularity = str(plan.site), settings.granularity
    return layer.train(plan.site.module.training)


def _keep_dense(model: nn.Module, modules: set[nn.Module]) -> None:
    """In eval mode a TransformerEncoder makes masked batches nested tensors, which only its fused kernels can take."""
    for encoder in model.modules():
        nests = isinstance(encoder, nn.TransformerEncoder) and encoder.use_nested_tensor
        if nests and not modules.isdisjoint(encoder.modules()):
            encoder.__dict__["use_nested_tensor"] = False
            encoder.__dict__["_nested_without_noise"] = True


def _noisy_modules(model: nn.Module) -> Generator[tuple[str, nn.Module]]:
    """The modules that `add_noise` gave noise to, with their paths."""
    for path, module in model.named_modules():
        if any(hook in _HOOKS for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())):
            yield path, module


def _drop_hooks(module: nn.Module, ours: Any) -> None:
    for hooks, with_kwargs in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for number, hook in list(hooks.items()):
            if ours(hook):
                del hooks[number]
                with_kwargs.pop(number, None)
