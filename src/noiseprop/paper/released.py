"""The released code's learned noise, departure by departure, on a network that `build` made.

Source: the paper's released code, as described in `protocol.DEPARTURES` and `protocol.RESNET_DEPARTURES`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noiseprop.models.registry import get_architecture, build
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.layer import NeuronNoise
from noiseprop.paper.protocol import Protocol, Row


def build_row(row: Row, protocol: Protocol, *, seed: int, weight_decay: float, classes: int | None = None) -> nn.Module:
    """The network of one row of a table under a protocol, ready for `train`.

    Args:
        row: which network.
        protocol: with which departures.
        seed: of the weights and the noise.
        weight_decay: that the weights' optimizer will apply to all it is given.
        classes: number of logits, if not the paper's.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes).
    """
    model = build(**options(row, protocol, seed=seed, classes=classes))
    if "plain-last-linear" in protocol and row.model.endswith("+"):
        _last_linear(model).sigma.zero_()
    layers = [(path, layer) for path, layer in noise_layers(model).items() if isinstance(layer.sigma, nn.Parameter)]
    generator = torch.Generator().manual_seed(seed)
    for path, layer in layers:
        site = model.get_submodule(path.removesuffix(".noise"))
        _start(site, layer, protocol, generator)
        _learn(layer, protocol, weight_decay)
    return model


def options(row: Row, protocol: Protocol, *, seed: int, classes: int | None = None) -> dict[str, Any]:
    """The arguments of `build` for a row."""
    name = row.model
    if "fixed-sigmoid" in protocol and (row.model, row.activation) == ("MLPN", "sigmoid"):
        name = "MLP+"
    silent = {"silent-plus": name.endswith("+"), "silent-learned": row.learned}
    at_inference = not any(departure in protocol and applies for departure, applies in silent.items())
    chosen = {"name": name, "activation": row.activation, "seed": seed, "at_inference": at_inference}
    if "after-addition" in protocol:
        chosen["everywhere"] = "all-released"
    if classes not in (None, get_architecture(name).classes):
        chosen["classes"] = classes
    return chosen


def _last_linear(model: nn.Module) -> NeuronNoise:
    """The noise of the last layer, which draws as it did; with sigma = 0 it adds nothing."""
    return list(noise_layers(model).values())[-1]


@torch.no_grad()
def _start(site: nn.Module, layer: NeuronNoise, protocol: Protocol, generator: torch.Generator) -> None:
    """First values of a learned noise layer and of the module that it stands on."""
    convolution = layer.sigma.dim() == 3  # also of a block's sum and of the stem's BatchNorm
    if "sigma-start" in protocol:
        if convolution:
            nn.init.xavier_normal_(layer.sigma, generator=generator)  # of the shape (C, H, W), as the code has it
        else:
            layer.sigma.normal_(generator=generator)
    if "linear-start" in protocol and isinstance(site, nn.Linear):
        nn.init.xavier_normal_(site.weight, generator=generator)
        site.bias.normal_(generator=generator)
    if "conv-mean" in protocol and convolution:
        layer.mu = nn.Parameter(torch.empty_like(layer.sigma))
        nn.init.xavier_normal_(layer.mu, generator=generator)
        if "silent-learned" in protocol:
            layer.register_forward_hook(_without_mean)


def _without_mean(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Our layers keep their mean when the noise is off: it is a bias. The code drops it."""
    return output if layer.training else args[0]


def _learn(layer: NeuronNoise, protocol: Protocol, weight_decay: float) -> None:
    """How sigma learns: its gradient and its optimizer."""
    sigma = layer.sigma
    has_decay, wants_decay = "sigma-adam" in protocol, "sigma-decay" in protocol
    decay = weight_decay * (wants_decay - has_decay)
    if "gradient-sign" in protocol:
        sigma.register_hook(_without_sign(sigma))
    if decay:
        sigma.register_hook(_with_decay(sigma, decay))
    if "sigma-adam" in protocol:
        parametrize.register_parametrization(layer, "sigma", _AmongWeights())


def _without_sign(sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """From the exact gradient to the code's.

    The code computes z = |sigma| eps and returns g eps = g z / |sigma|. Our layer computes z = sigma eps, which has the
    same distribution, and returns g eps = g z / sigma. The code's is ours times the sign of sigma. (At sigma = 0 the
    code divides 0 by 0; here the gradient is 0.)
    """
    return lambda gradient: gradient * sigma.detach().sign()


def _with_decay(sigma: Tensor, decay: float) -> Callable[[Tensor], Tensor]:
    """L2 decay is a term of the gradient (Table 1), so it can be added, or taken from an optimizer that adds it."""
    return lambda gradient: gradient + decay * sigma.detach()


class _AmongWeights(nn.Module):
    """Makes `layer.sigma` a function of a parameter, so that `train` finds no sigma and counts it among the weights."""

    def forward(self, sigma: Tensor) -> Tensor:
        return sigma.view_as(sigma)  # a tensor, no longer a parameter
