"""Cost of noise in a training step on this machine, compared with a plain torch implementation."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.noise.attach.add_noise import noise_layers, remove_noise
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sigma_adam import SigmaAdam, sigmas, weights
from noiseprop.training.timing import compare_times, time_in_turn

STEP_VARIANTS = ("no noise", "noiseprop", "plain torch")


def measure_step_cost(
    model: nn.Module, x: Tensor, y: Tensor, *, seconds: float = 15.0, rounds: int = 10
) -> dict[str, dict[str, float]]:
    """Time a training step (both passes, Adam, and `SigmaAdam` for sigma) of three networks, in turn.

    Args:
        model: maps images (B, C, H, W) to logits (B, classes), with noise; it stays as it is.
        x: batch, (B, C, H, W).
        y: labels, (B,).
        seconds: longest time to measure; it ends once the ratios are known to ±2 %.
        rounds: minimum number of steps of each network.

    Returns:
        Figures of the network without noise, as it is, and with ``x + sigma * torch.randn_like(x)`` for its noise: the
        median "milliseconds" of a step and its "median" ratio to the first, with quartiles and error.
    """
    plain = copy.deepcopy(model)
    for layer in noise_layers(plain).values():
        layer.use_sampler(_sample_with_torch)
    models = dict(zip(STEP_VARIANTS, (remove_noise(copy.deepcopy(model)), copy.deepcopy(model), plain), strict=True))
    steps = {name: _make_step(net, x, y) for name, net in models.items()}
    times = time_in_turn(steps, warmup=2, rounds=rounds, most=2000, seconds=seconds)
    return {name: compare_times(times, name) for name in STEP_VARIANTS}


def _sample_with_torch(layer: NeuronNoise, x: Tensor, key: Tensor, draws: int) -> Tensor:
    """Compute Eq. 1 as one would write it without noiseprop."""
    y = x + layer.sigma * torch.randn_like(x)
    return y if layer.mu is None else y + layer.mu


def _make_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """Return a function that makes one training step."""
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
