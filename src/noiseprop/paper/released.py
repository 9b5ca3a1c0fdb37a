"""The released code's learned noise, departure by departure, on a network that `build` made.

Source: MNIST/models.py and MNIST/train.py of the paper's released code, as described in `protocol.DEPARTURES`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noiseprop.noise.attach import noise_layers
from noiseprop.noise.layer import NeuronNoise
from noiseprop.paper.protocol import Protocol, Row
from noiseprop.paper.variants import build


def build_row(row: Row, protocol: Protocol, *, seed: int, weight_decay: float) -> nn.Module:
    """The network of one row of a table under a protocol, ready for `train`.

    Args:
        row: which network.
        protocol: with which departures.
        seed: of the weights and the noise.
        weight_decay: that the weights' optimizer will apply to all it is given.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes).
    """
    model = build(**options(row, protocol, seed=seed))
    layers = [(path, layer) for path, layer in noise_layers(model).items() if isinstance(layer.sigma, nn.Parameter)]
    generator = torch.Generator().manual_seed(seed)
    for path, layer in layers:
        site = model.get_submodule(path.removesuffix(".noise"))
        _start(site, layer, protocol, generator)
        _learn(layer, protocol, weight_decay)
    return model


def options(row: Row, protocol: Protocol, *, seed: int) -> dict[str, Any]:
    """The arguments of `build` for a row."""
    name = row.model
    if "fixed-sigmoid" in protocol and (row.model, row.activation) == ("MLPN", "sigmoid"):
        name = "MLP+"
    at_inference = not ("silent-plus" in protocol and name.endswith("+"))
    return {"name": name, "activation": row.activation, "seed": seed, "at_inference": at_inference}


@torch.no_grad()
def _start(site: nn.Module, layer: NeuronNoise, protocol: Protocol, generator: torch.Generator) -> None:
    """First values of a learned noise layer and of the module that it stands on."""
    convolution = isinstance(site, nn.Conv2d)
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
