"""Install noise layers with hooks, child modules and a stream, and uninstall them without a trace."""

# torch has no public way to list or remove the hooks of a module:
# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.compile_guard import mark_for_compiler, unmark_for_compiler
from noiseprop.noise.attach.hooks import add_by_input, add_to_input, add_to_output, add_to_sequence
from noiseprop.noise.attach.noise_specs import NoiseSpec
from noiseprop.noise.attach.selectors import Site
from noiseprop.noise.layer import Estimator, Granularity, Init, NeuronNoise
from noiseprop.noise.sampling import forget_prefix
from noiseprop.noise.stream import NoiseStream

_NESTED_MARK = "_nested_without_noise"  # on encoders whose nested tensors `uninstall_noise` allows again
_HOOKS = (add_to_output, add_to_input, add_to_sequence, add_by_input)


@dataclass(frozen=True)
class LayerOptions:
    """Options of the noise layers that one call of `add_noise` adds."""

    granularity: Granularity = "neuron"
    init: Init = 1.0
    learn: bool = True
    mean: bool = False
    at_inference: bool = True
    key: int = 0
    batch_dim: int = 0
    estimator: Estimator = "pathwise"
    make_layer: Callable[..., NeuronNoise] = NeuronNoise


@torch.inference_mode(False)  # the tensors made here must be trainable, even if the first batch is for inference
def install_noise(model: nn.Module, specs: Sequence[NoiseSpec], options: LayerOptions) -> NoiseStream:
    """Install noise layers as specified; the caller has checked all that can fail."""
    stream = get_own_stream(model)
    first = 1 + max((layer.number for _, layer in find_installed(model)), default=-1)
    if stream is None:
        stream = NoiseStream(options.key)
        stream.to(specs[0].like.device)
    generator = torch.Generator().manual_seed((options.key + first) % 2**64)
    layers = [_make_layer(spec, options, generator) for spec in specs]
    for number, (spec, layer) in enumerate(zip(specs, layers, strict=True), start=first):
        layer.bind(stream, number)
        module = spec.site.module
        module.add_module("noise", layer)
        if spec.site.before:
            module.register_forward_pre_hook(add_to_input, with_kwargs=True)
        elif hasattr(layer, "add_by_input"):
            module.register_forward_hook(add_by_input, with_kwargs=True, prepend=True)
        else:  # ahead of hooks that record outputs, as those of transformers do, so that they record the noise too
            hook = add_to_sequence if isinstance(module, nn.RNNBase) else add_to_output
            module.register_forward_hook(hook, prepend=True)
    if first == 0:
        model.register_forward_pre_hook(stream.begin, prepend=True)  # ahead of noise on the model's own input
    noisy = {module for _, module in _find_noisy_modules(model)}
    for module in model.modules():
        if not noisy.isdisjoint(module.children()) or (module is model and module in noisy):
            mark_for_compiler(module)
    _disable_nested_tensors(model, noisy)
    forget_prefix(model)
    return stream


def uninstall_noise(model: nn.Module) -> None:
    """Undo every `install_noise` on a model."""
    stream = get_own_stream(model)
    for _, module in list(_find_noisy_modules(model)):
        _remove_hooks(module, lambda hook: hook in _HOOKS)
        del module.noise
    _remove_hooks(model, lambda hook: stream is not None and getattr(hook, "__self__", None) is stream)
    for module in model.modules():
        unmark_for_compiler(module)
        if isinstance(module, nn.TransformerEncoder) and hasattr(module, _NESTED_MARK):
            delattr(module, _NESTED_MARK)
            module.use_nested_tensor = True
    forget_prefix(model)


def find_installed(model: nn.Module) -> list[tuple[Site, NeuronNoise]]:
    """Return the noise layers that were installed in a model, with their sites, in the order of their numbers."""
    layers = [
        (Site(path, module, before=add_to_input in module._forward_pre_hooks.values()), cast(NeuronNoise, module.noise))
        for path, module in _find_noisy_modules(model)
    ]
    return sorted(layers, key=lambda entry: entry[1].number)


def get_own_stream(model: nn.Module) -> NoiseStream | None:
    """Return the stream of the noise that was added to this model.

    Raises:
        InputError: the noise was added to a larger model or to a part of this one.
    """
    begun = {id(getattr(hook, "__self__", None)) for hook in model._forward_pre_hooks.values()}
    own = None
    for path, module in _find_noisy_modules(model):
        stream = cast(NeuronNoise, module.noise).stream
        if id(stream) not in begun:
            raise InputError(
                f"the noise of {path or 'the model itself'} was not added to this {type(model).__name__} as a whole, "
                "but to a larger model or to a part of it; call remove_noise on that one first"
            )
        own = stream
    return own


def _make_layer(spec: NoiseSpec, options: LayerOptions, generator: torch.Generator) -> NeuronNoise:
    init, normal = options.init, options.init == "normal"
    with torch.random.fork_rng(devices=[]):
        layer = options.make_layer(
            spec.shape,
            init=1.0 if normal else init,
            learn=options.learn,
            mean=options.mean,
            at_inference=options.at_inference,
            batch_dim=spec.batch_dim,
            estimator=options.estimator,
        )
        if normal:
            layer.sigma.data.normal_(generator=generator)
        layer.to(spec.like.device, torch.float64 if spec.like.dtype == torch.float64 else torch.float32)
    layer.path, layer.granularity = str(spec.site), options.granularity
    return layer.train(spec.site.module.training)


def _disable_nested_tensors(model: nn.Module, modules: set[nn.Module]) -> None:
    """Keep a TransformerEncoder from making nested tensors in eval mode, which only its fused kernels can take."""
    for encoder in model.modules():
        if not isinstance(encoder, nn.TransformerEncoder) or not encoder.use_nested_tensor:
            continue
        if not modules.isdisjoint(encoder.modules()):
            encoder.use_nested_tensor = False
            setattr(encoder, _NESTED_MARK, True)


def _find_noisy_modules(model: nn.Module) -> Generator[tuple[str, nn.Module]]:
    """Yield the modules with installed noise, with their paths."""
    for path, module in model.named_modules():
        if any(hook in _HOOKS for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())):
            yield path, module


def _remove_hooks(module: nn.Module, ours: Any) -> None:
    for hooks, with_kwargs in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for number, hook in list(hooks.items()):
            if ours(hook):
                del hooks[number]
                with_kwargs.pop(number, None)
