"""The noise of a network neuron by neuron: how large it is, how large beside the signal, and where it is heading."""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.baselines.base import AdditiveNoise, PresetNoise
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_kept

Losses = Callable[[Tensor, Tensor], Tensor]
_cross_entropies: Losses = partial(functional.cross_entropy, reduction="none")


@dataclass(frozen=True)
class LayerNoise:
    """The noise of one layer. All tensors have sigma's shape, one entry per neuron, channel or layer.

    Where the layer is one of `noise.presets` whose sigma is no standard deviation in units of the pre-activation,
    `sigma` and `spread` are those of each neuron, and `sigma` is the root mean square of the noise as it was seen.

    Attributes:
        path: the noise layer's module path, such as "fc1.noise".
        sigma: |sigma|, in units of the pre-activation.
        spread: the pre-activation's own standard deviation over the images, with all noise off; where a sigma is
            shared, the root of the mean variance of the neurons that share it.
        gradient: mean over the batches of d(loss)/d|sigma|; above 0, descent takes noise away. None if sigma is fixed.
        noise: standard deviation of that gradient from batch to batch: other images, other noise. None if sigma is
            fixed.
        batches: how many of them were measured.
    """

    path: str
    sigma: Tensor
    spread: Tensor
    gradient: Tensor | None
    noise: Tensor | None
    batches: int

    @property
    def relative(self) -> Tensor:
        """Sigma in units of the pre-activation's own standard deviation; infinite where that is 0."""
        return self.sigma / self.spread

    @property
    def snr(self) -> Tensor | None:
        """Signal-to-noise ratio of one batch's gradient, mean / std; its sign is the gradient's."""
        if self.gradient is None or self.noise is None:
            return None
        return (self.gradient / self.noise).nan_to_num(nan=0.0)

    @property
    def floor(self) -> float:
        """An |snr| below this is within two standard errors of no gradient at all."""
        return 2 / self.batches**0.5


def inspect_noise(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, losses: Losses = _cross_entropies
) -> list[LayerNoise]:
    """Measure every noise layer of a model, in eval mode but with its noise on; the model is left as it was.

    Args:
        model: maps x to outputs whose first axis is the batch.
        batches: at least two pairs (x, y) of the batch size whose gradient is asked about.
        losses: ``losses(model(x), y)``, one per sample; cross-entropy if omitted.

    Returns:
        One `LayerNoise` per layer, in the order of the model's modules.

    Raises:
        InputError: the model has no noise, there are fewer than two batches, inputs change their size, or a loss is NaN
            or infinite.

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
        raise InputError("the model has no noise to inspect; call add_noise(model, ...) first")
    signals: dict[str, _Moments] = {path: _Moments() for path in layers}
    gradients: dict[str, _Moments] = {path: _Moments() for path, layer in layers.items() if _learned(layer)}
    powers: dict[str, _Moments] = {path: _Moments() for path, layer in layers.items() if _in_other_units(layer)}
    count = 0
    with _undisturbed(model, layers.values()):
        for x, y in batches:
            _measure_signals(model, x, layers, signals)
            with _seeing(layers, powers, after=True):
                _measure_gradients(model, x, y, layers, gradients, losses)
            count += 1
    if count < 2:
        raise InputError(f"inspect_noise got {count} batches, which show no variation; give at least 2")
    return [
        _layer_noise(path, layer, signals[path], powers.get(path), gradients.get(path), count)
        for path, layer in layers.items()
    ]


class _Moments:
    """Mean and squared deviations of rows that come batch after batch, in float64 (Chan, Golub and LeVeque, 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        rows = rows.detach().double()
        if self.count and rows.shape[1:] != self.mean.shape:
            raise InputError(
                f"inspect_noise saw neurons {tuple(rows.shape[1:])} after {tuple(self.mean.shape)}; "
                "give inputs of one size"
            )
        total = self.count + len(rows)
        mean = rows.mean(0)
        shift = mean - self.mean
        self.squares = self.squares + (rows - mean).square().sum(0) + shift.square() * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def variance(self) -> Tensor:
        return self.squares / max(1, self.count - 1)


@torch.no_grad()
def _measure_signals(model: nn.Module, x: Tensor, layers: dict[str, NeuronNoise], signals: dict[str, _Moments]) -> None:
    """Run without noise, and look at what each noise layer is given."""
    with _seeing(layers, signals, after=False), sampling(model, "off"):
        model(x)


def _measure_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layers: dict[str, NeuronNoise],
    gradients: dict[str, _Moments],
    losses: Losses,
) -> None:
    each = losses(model(x), y)
    if not each.detach().isfinite().all():
        raise InputError(
            "inspect_noise met a loss of NaN or infinity, so nothing can be told; check the model's weights and inputs"
        )
    if not gradients:
        return
    ratio = any(layer.estimator == "likelihood-ratio" for layer in layers.values())
    loss = likelihood_ratio_loss(model, each) if ratio else each.mean()
    levels = [layers[path].sigma for path in gradients]
    found = torch.autograd.grad(loss, levels, allow_unused=True, materialize_grads=True)
    for moments, sigma, gradient in zip(gradients.values(), levels, found, strict=True):
        moments.add(torch.where(sigma.detach() < 0, -gradient, gradient)[None])  # of |sigma|


@contextmanager
def _seeing(layers: dict[str, NeuronNoise], moments: dict[str, _Moments], *, after: bool) -> Generator[None]:
    """Collect what some layers are given or, `after`, the square of the noise that they add to it."""
    with ExitStack() as stack:
        for path, moment in moments.items():

            def see(layer: NeuronNoise, args: tuple[Tensor], output: Tensor, moment: _Moments = moment) -> None:
                seen = (output - args[0]).detach().double().square() if after else args[0]
                moment.add(seen.movedim(layer.batch_dim, 0))

            stack.callback(layers[path].register_forward_hook(see).remove)
        yield


def _layer_noise(
    path: str,
    layer: NeuronNoise,
    signal: _Moments,
    power: _Moments | None,
    gradient: _Moments | None,
    batches: int,
) -> LayerNoise:
    if not signal.count:
        raise InputError(f"{path} was not called; give inputs that reach every noise layer, or remove it")
    sigma, variance = layer.sigma.detach().abs().double(), signal.variance()
    if power is not None:
        sigma = power.mean.sqrt()
    spread = (variance.sum_to_size(sigma.shape) / (variance.numel() // sigma.numel())).sqrt()
    if gradient is None:
        return LayerNoise(path, sigma.cpu(), spread.cpu(), None, None, batches)
    return LayerNoise(path, sigma.cpu(), spread.cpu(), gradient.mean.cpu(), gradient.variance().sqrt().cpu(), batches)


def _in_other_units(layer: NeuronNoise) -> bool:
    return isinstance(layer, PresetNoise) and not isinstance(layer, AdditiveNoise)


def _learned(layer: NeuronNoise) -> bool:
    return isinstance(layer.sigma, nn.Parameter) and layer.sigma.requires_grad


@contextmanager
def _undisturbed(model: nn.Module, layers: Iterable[NeuronNoise]) -> Generator[None]:
    """Eval mode with every noise layer on; modes and the place of the noise as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        with noise_kept(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
