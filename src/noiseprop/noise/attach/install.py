"""Install noise layers with hooks and child modules, and uninstall them without a trace."""

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
from noiseprop.noise.sampling import forget_plans
from noiseprop.noise.sampling_state import PassScope

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
    same_on_all_ranks: bool = False


@torch.inference_mode(False)  # the tensors made here must be trainable, even if the first batch is for inference
def install_noise(model: nn.Module, specs: Sequence[NoiseSpec], options: LayerOptions) -> PassScope:
    """Install noise layers as specified; the caller has checked all that can fail."""
    installed = [layer for _, layer in find_installed(model)]
    scope = get_own_scope(model) or PassScope()
    seed, next_pass = (installed[0].seed, installed[0].next_pass) if installed else (options.key, 0)
    first = 1 + max((layer.number for layer in installed), default=-1)
    generator = torch.Generator().manual_seed((options.key + first) % 2**64)
    layers = [_make_layer(spec, options, generator) for spec in specs]
    for number, (spec, layer) in enumerate(zip(specs, layers, strict=True), start=first):
        layer.attach(scope, seed=seed, number=number, next_pass=next_pass)
        module = spec.site.module
        module.add_module("noise", layer)
        if spec.site.before:
            module.register_forward_pre_hook(add_to_input, with_kwargs=True)
        elif hasattr(layer, "add_by_input"):
            module.register_forward_hook(add_by_input, with_kwargs=True, prepend=True)
        else:  # ahead of hooks that record outputs, as those of transformers do, so that they record the noise too
            hook = add_to_sequence if isinstance(module, nn.RNNBase) else add_to_output
            module.register_forward_hook(hook, prepend=True)
    if not installed:
        _remove_hooks(model, _is_of_scope)  # of layers that are gone
        model.register_forward_pre_hook(scope.begin, prepend=True)  # ahead of noise on the input of the model
        model.register_forward_hook(scope.end, always_call=True)  # also after an exception
    noisy = {module for _, module in _find_noisy_modules(model)}
    for module in model.modules():
        if not noisy.isdisjoint(module.children()) or (module is model and module in noisy):
            mark_for_compiler(module)
    _disable_nested_tensors(model, noisy)
    forget_plans(model)
    return scope


def uninstall_noise(model: nn.Module) -> None:
    """Undo every `install_noise` on a model."""
    get_own_scope(model)  # raises if the noise was added to another module
    for _, module in list(_find_noisy_modules(model)):
        _remove_hooks(module, lambda hook: hook in _HOOKS)
        del module.noise
    _remove_hooks(model, _is_of_scope)
    for module in model.modules():
        unmark_for_compiler(module)
        if isinstance(module, nn.TransformerEncoder) and hasattr(module, _NESTED_MARK):
            delattr(module, _NESTED_MARK)
            module.use_nested_tensor = True
    forget_plans(model)


def find_installed(model: nn.Module) -> list[tuple[Site, NeuronNoise]]:
    """Return the noise layers that were installed in a model, with their sites, in the order of their numbers."""
    layers = [
        (Site(path, module, before=add_to_input in module._forward_pre_hooks.values()), cast(NeuronNoise, module.noise))
        for path, module in _find_noisy_modules(model)
    ]
    return sorted(layers, key=lambda entry: entry[1].number)


def get_own_scope(model: nn.Module) -> PassScope | None:
    """Return the scope of the noise that was added to this model, or None without noise.

    Raises:
        InputError: the noise was added to a larger model or to a part of this one.
    """
    begun = {id(getattr(hook, "__self__", None)) for hook in model._forward_pre_hooks.values()}
    own = None
    for path, module in _find_noisy_modules(model):
        scope = cast(NeuronNoise, module.noise).scope
        if id(scope) not in begun:
            raise InputError(
                f"the noise of {path or 'the model itself'} was not added to this {type(model).__name__} as a whole, "
                "but to a larger model or to a part of it; call remove_noise on that one first"
            )
        own = scope
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
    layer.same_on_all_ranks = options.same_on_all_ranks
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
    for hooks, *options in (
        (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for number, hook in list(hooks.items()):
            if ours(hook):
                del hooks[number]
                for numbers in options:
                    numbers.pop(number, None)


def _is_of_scope(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), PassScope)
