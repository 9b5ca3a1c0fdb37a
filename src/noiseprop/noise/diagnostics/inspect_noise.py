"""Measure the noise of a network neuron by neuron: its size, its size relative to the signal, and its gradient."""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.baselines.base import AdditiveNoise, BaselineNoise
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss
from noiseprop.noise.module_state import preserve_modes
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_kept

Losses = Callable[[Tensor, Tensor], Tensor]
_cross_entropies: Losses = partial(functional.cross_entropy, reduction="none")


@dataclass(frozen=True)
class LayerNoise:
    """Noise of one layer. All tensors have sigma's shape, with one entry per neuron, channel or layer.

    The sigma of some layers of `noise.baselines` is not a standard deviation in units of the pre-activation. For these,
    `sigma` and `spread` have one entry per neuron, and `sigma` is the root mean square of the measured noise.

    Attributes:
        path: module path of the noise layer, such as "fc1.noise".
        sigma: |sigma|, in units of the pre-activation.
        spread: standard deviation of the pre-activation over the images, with all noise off; for a shared sigma, the
            root of the mean variance of the neurons that share it.
        gradient: mean over the batches of d(loss)/d|sigma|; if above 0, descent reduces the noise. None if sigma is
            fixed.
        noise: standard deviation of that gradient over batches with different images and noise. None if sigma is
            fixed.
        batches: number of measured batches.
    """

    path: str
    sigma: Tensor
    spread: Tensor
    gradient: Tensor | None
    noise: Tensor | None
    batches: int

    @property
    def relative(self) -> Tensor:
        """Return sigma in units of the pre-activation's standard deviation; infinite where that is 0."""
        return self.sigma / self.spread

    @property
    def snr(self) -> Tensor | None:
        """Return the signal-to-noise ratio of one batch's gradient, mean / std, with the sign of the gradient."""
        if self.gradient is None or self.noise is None:
            return None
        return (self.gradient / self.noise).nan_to_num(nan=0.0)

    @property
    def floor(self) -> float:
        """Return the |snr| below which the gradient is within two standard errors of 0."""
        return 2 / self.batches**0.5


def inspect_noise(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, losses: Losses = _cross_entropies
) -> list[LayerNoise]:
    """Measure every noise layer of a model in eval mode with its noise on; the model and the batches stay unchanged.

    Args:
        model: maps x to outputs whose first axis is the batch.
        batches: at least two pairs (x, y), of the batch size for which the gradient is measured.
        losses: ``losses(model(x), y)`` returns one loss per sample; cross-entropy if omitted.

    Returns:
        One `LayerNoise` per layer, in the order of the model's modules.

    Raises:
        InputError: the model has no noise, there are fewer than two batches, inputs differ in size, or a loss is NaN or
            infinite.

    Examples:
        >>> import noiseprop
        >>> net = noiseprop.add_noise(nn.Linear(3, 2), [""], init=0.5, example=torch.zeros(1, 3))
        >>> some = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
        >>> (layer,) = inspect_noise(net, some)
        >>> layer.sigma, layer.relative.shape, layer.floor
        (tensor([0.5000, 0.5000], dtype=torch.float64), torch.Size([2]), 1.0)
    """
    layers = noise_layers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no noise to inspect; call add_noise(model, ...) first")
    signals = {path: _RunningMoments() for path in layers}
    gradients = {path: _RunningMoments() for path, layer in layers.items() if _has_learned_sigma(layer)}
    powers = {path: _RunningMoments() for path, layer in layers.items() if _has_other_units(layer)}
    count = 0
    with _prepare_for_inspection(model, layers.values()):
        for x, y in batches:
            _measure_signals(model, x, layers, signals)
            with _record_calls(layers, powers, measure_noise=True):
                _measure_gradients(model, x, y, layers, gradients, losses)
            count += 1
    if count < 2:
        raise InputError(f"inspect_noise got {count} batches, expected at least 2 to measure a variation; pass more")
    return [
        _summarize_layer(path, layer, signals[path], powers.get(path), gradients.get(path), count)
        for path, layer in layers.items()
    ]


class _RunningMoments:
    """Mean and squared deviations of rows from successive batches, in float64 (Chan, Golub and LeVeque, 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def update_moments(self, rows: Tensor) -> None:
        rows = rows.detach().double()
        if self.count and rows.shape[1:] != self.mean.shape:
            raise InputError(
                f"inspect_noise got neurons of shape {tuple(rows.shape[1:])} after {tuple(self.mean.shape)}; "
                "pass inputs of one size"
            )
        total = self.count + len(rows)
        mean = rows.mean(0)
        shift = mean - self.mean
        self.squares = self.squares + (rows - mean).square().sum(0) + shift.square() * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def compute_variance(self) -> Tensor:
        return self.squares / max(1, self.count - 1)


@torch.no_grad()
def _measure_signals(
    model: nn.Module, x: Tensor, layers: dict[str, NeuronNoise], signals: dict[str, _RunningMoments]
) -> None:
    """Run the model without noise, and measure the input of each noise layer."""
    with _record_calls(layers, signals, measure_noise=False), sampling(model, "off"):
        model(x.clone())  # a model may change its input in place, here and below


def _measure_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layers: dict[str, NeuronNoise],
    gradients: dict[str, _RunningMoments],
    losses: Losses,
) -> None:
    each = losses(model(x.clone()), y)
    if not each.detach().isfinite().all():
        raise InputError("inspect_noise got a loss of NaN or infinity; check the model's weights and inputs")
    if not gradients:
        return
    ratio = any(layer.estimator == "likelihood-ratio" for layer in layers.values())
    loss = likelihood_ratio_loss(model, each) if ratio else each.mean()
    levels = [layers[path].sigma for path in gradients]
    results = torch.autograd.grad(loss, levels, allow_unused=True, materialize_grads=True)
    for moments, sigma, gradient in zip(gradients.values(), levels, results, strict=True):
        moments.update_moments(torch.where(sigma.detach() < 0, -gradient, gradient)[None])  # w.r.t. |sigma|


@contextmanager
def _record_calls(
    layers: dict[str, NeuronNoise], moments: dict[str, _RunningMoments], *, measure_noise: bool
) -> Generator[None]:
    """Collect the moments of some layers' inputs or, with `measure_noise`, of the squared noise that they add."""
    with ExitStack() as stack:
        for path, moment in moments.items():

            def record_moments(layer: NeuronNoise, args: tuple[Tensor], output: Tensor, moment: Any = moment) -> None:
                value = (output - args[0]).detach().double().square() if measure_noise else args[0]
                moment.update_moments(value.movedim(layer.batch_dim, 0))

            stack.callback(layers[path].register_forward_hook(record_moments).remove)
        yield


def _summarize_layer(
    path: str,
    layer: NeuronNoise,
    signal: _RunningMoments,
    power: _RunningMoments | None,
    gradient: _RunningMoments | None,
    batches: int,
) -> LayerNoise:
    if not signal.count:
        raise InputError(f"{path} was not called; pass inputs that reach every noise layer, or remove it")
    sigma, variance = layer.sigma.detach().abs().double(), signal.compute_variance()
    if power is not None:
        sigma = power.mean.sqrt()
    spread = (variance.sum_to_size(sigma.shape) / (variance.numel() // sigma.numel())).sqrt()
    if gradient is None:
        return LayerNoise(path, sigma.cpu(), spread.cpu(), None, None, batches)
    return LayerNoise(
        path, sigma.cpu(), spread.cpu(), gradient.mean.cpu(), gradient.compute_variance().sqrt().cpu(), batches
    )


def _has_other_units(layer: NeuronNoise) -> bool:
    return isinstance(layer, BaselineNoise) and not isinstance(layer, AdditiveNoise)


def _has_learned_sigma(layer: NeuronNoise) -> bool:
    return isinstance(layer.sigma, nn.Parameter) and layer.sigma.requires_grad


@contextmanager
def _prepare_for_inspection(model: nn.Module, layers: Iterable[NeuronNoise]) -> Generator[None]:
    """Put a model into eval mode with every noise layer on; restore the model and its noise state afterwards."""
    with preserve_modes(model, training=False), noise_kept(model):
        for layer in layers:
            layer.train()
        yield
