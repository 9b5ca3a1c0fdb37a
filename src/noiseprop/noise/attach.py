"""``add_noise``: give a model noise where it stands, and take it away again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.layer import Init, NeuronNoise
from noiseprop.noise.sampling import forget_prefix
from noiseprop.noise.stream import NoiseStream


def _apply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The forward hook of a noisy module."""
    return module.noise(output)  # pyright: ignore[reportCallIssue]


def add_noise(
    model: nn.Module,
    where: Sequence[str],
    *,
    granularity: str = "neuron",
    init: Init = 1.0,
    learn: bool = True,
    mean: bool = False,
    at_inference: bool = True,
    example: Tensor,
    key: int = 0,
) -> nn.Module:
    """Provisional: see the issue "Any network"."""
    named = dict(model.named_modules())
    shapes: dict[str, torch.Size] = {}
    handles = [
        named[name].register_forward_hook(lambda m, a, out, name=name: shapes.__setitem__(name, out.shape[1:]))
        for name in where
    ]
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    stream = NoiseStream(key)
    generator = torch.Generator().manual_seed(key)
    for number, name in enumerate(where):
        module = named[name]
        if hasattr(module, "noise"):
            raise InputError(f"{name or 'the model'} has noise already; call remove_noise(model) first")
        shape = shapes[name] if granularity == "neuron" else (shapes[name][0], *([1] * (len(shapes[name]) - 1)))
        with torch.random.fork_rng(devices=[]):
            noise = NeuronNoise(shape, init=1.0 if init == "normal" else init, learn=learn, mean=mean, at_inference=at_inference)
        if init == "normal":
            noise.sigma.data.normal_(generator=generator)
        noise.bind(stream, number)
        noise.train(module.training)
        module.noise = noise
        module.register_forward_hook(_apply)
    model.register_forward_pre_hook(stream.begin)
    forget_prefix(model)
    return model


def noise_layers(model: nn.Module) -> dict[str, NeuronNoise]:
    """The noise layers of a model by module path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NeuronNoise)}


def is_noisy(model: nn.Module) -> bool:
    """Whether a model has any noise layer."""
    return bool(noise_layers(model))
