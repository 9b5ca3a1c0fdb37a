"""What noise adds to a training step of a network on this machine, beside what one would write without noiseprop."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.noise.attach.add_noise import noise_layers, remove_noise
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sigma_adam import SigmaAdam, sigmas, weights
from noiseprop.training.timing import paired, ratio

NAMES = ("no noise", "noiseprop", "plain torch")


def step_cost(
    model: nn.Module, x: Tensor, y: Tensor, *, seconds: float = 15.0, rounds: int = 10
) -> dict[str, dict[str, float]]:
    """Time a training step (both passes, Adam, and `SigmaAdam` for sigma) of three networks, a step each in turn.

    Args:
        model: images (B, C, H, W) to logits (B, classes), with noise; it stays as it is.
        x: the batch (B, C, H, W).
        y: its labels (B,).
        seconds: to measure for; less where the ratios are known to ±2 % before.
        rounds: steps of each at least.

    Returns:
        For the network with its noise taken away, as it is, and with ``x + sigma * torch.randn_like(x)`` in the noise's
        place: the median "milliseconds" of a step and its "median" ratio to the first, with quartiles and error.
    """
    plain = copy.deepcopy(model)
    for layer in noise_layers(plain).values():
        layer.__dict__["noisy"] = _Plain(layer)
    models = dict(zip(NAMES, (remove_noise(copy.deepcopy(model)), copy.deepcopy(model), plain), strict=True))
    steps = {name: _step(net, x, y) for name, net in models.items()}
    times = paired(steps, warmup=2, rounds=rounds, most=2000, seconds=seconds)
    return {name: ratio(times, name) for name in NAMES}


class _Plain:
    """Eq. 1 as one would write it, in the place of a layer's `noisy`."""

    def __init__(self, layer: NeuronNoise) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        y = x + self.layer.sigma * torch.randn_like(x)
        return y if self.layer.mu is None else y + self.layer.mu


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """One training step."""
    model.train()
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam([p for p in weights(model) if p.requires_grad], lr=1e-3, fused=True)
    ]
    if learned := [sigma for sigma in sigmas(model) if sigma.requires_grad]:
        optimizers.append(SigmaAdam(learned))

    def run() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()

    return run
