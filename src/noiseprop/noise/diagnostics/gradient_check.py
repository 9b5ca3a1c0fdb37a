"""Check Theorems 1 and 2 for a model: the gradients of its noise, and of the layers after the noise.

Three checks of every noise layer with a learned sigma:

1. Theorem 1, the kernels: Eq. 3's gradient against autograd's, through ``x + mu + sigma * eps`` in torch operations
   with the same eps. A difference shows that the kernels are wrong on this machine.
2. Theorem 1, the model: the same gradient against finite differences of the loss with fixed noise. A difference shows
   that a backward pass of the model is wrong.
3. Theorem 2: the mean of Eq. 3 over many draws against a finite difference of the expected loss, with common random
   numbers on both sides and other draws than those of Eq. 3. A difference shows that the loss jumps, as after a hard
   threshold: the gradient of each draw is then right, but their mean is not the derivative of the mean.
"""

import copy
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.kernels.philox import standard_normal
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.module_state import preserve_modes
from noiseprop.noise.sampling import sampling

MAX_AUTOGRAD_ERROR = 1e-3  # relative; between two ways to compute one gradient in float32
MAX_DIFFERENCE_ERROR = 5e-3  # relative; to finite differences, whose steps may cross a kink of a ReLU
MAX_STANDARD_ERRORS = 4.0
_STEP, _WIDE_STEP = 1e-6, 0.05  # relative to sigma: for one draw in float64, and for the expected loss
_DIRECTIONS = 3  # random directions per layer

CheckProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class MeanEstimate:
    """Mean over draws with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class LayerCheck:
    """Results of the checks of one noise layer.

    Attributes:
        path: path of the module with the noise.
        sigmas: number of sigmas.
        autograd_error: relative distance of Eq. 3 from autograd with the same eps; None if the noise has another form.
        finite_difference_error: relative distance of Eq. 3 from finite differences with fixed noise.
        estimate: mean of Eq. 3 over draws, along the direction in which all |sigma| grow equally.
        derivative: derivative of the expected loss in that direction, by differences with common random numbers.
    """

    path: str
    sigmas: int
    autograd_error: float | None
    finite_difference_error: float
    estimate: MeanEstimate
    derivative: MeanEstimate

    @property
    def standard_errors_apart(self) -> float:
        """Return the distance of `estimate` and `derivative` in standard errors of their difference."""
        distance = abs(self.estimate.value - self.derivative.value)
        error = math.hypot(self.estimate.error, self.derivative.error)
        return distance / error if error else (0.0 if distance == 0 else math.inf)

    @property
    def theorem_1(self) -> bool:
        """Return whether Eq. 3 is the derivative of each draw's loss."""
        return (
            self.autograd_error is None or self.autograd_error <= MAX_AUTOGRAD_ERROR
        ) and self.finite_difference_error <= MAX_DIFFERENCE_ERROR

    @property
    def theorem_2(self) -> bool:
        """Return whether Eq. 3 is on average the derivative of the expected loss."""
        return self.standard_errors_apart <= MAX_STANDARD_ERRORS


def check_theorems(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 200, key: int = 0, progress: CheckProgress | None = None
) -> list[LayerCheck]:
    """Check Eq. 3 on a model, layer by layer; the loss is the mean cross-entropy of a batch.

    The checks run in eval mode with active noise, so that only the noise is random. The model is restored afterwards.

    Args:
        model: images (B, C, H, W) to logits (B, classes), with learned noise.
        x: the batch (B, C, H, W); a few images suffice.
        y: labels (B,).
        draws: number of draws for the mean of Eq. 3 and again for the expected loss; 2 or more.
        key: seed of all draws.
        progress: called with the number of steps done, the number of all steps, and the name of the next one.

    Returns:
        One `LayerCheck` per layer with learned noise, in the model's order.

    Raises:
        InputError: no sigma is learned, `draws` is below 2, or the model does not compute in float64.
    """
    if draws < 2:
        raise InputError(f"check_theorems got draws={draws}; take 2 or more, 200 for a sharp check")
    layers = {path: layer for path, layer in noise_layers(model).items() if layer.sigma.requires_grad}
    if not layers:
        raise InputError(f"{type(model).__name__} has no learned noise to check; call add_noise first")
    report_progress = progress or (lambda done, total, name: None)
    steps = 2 + len(layers)
    with _prepare_for_check(model):
        report_progress(0, steps, "Theorem 1")
        autograd_errors = _compare_with_autograd(model, layers, x, y, key)
        difference_errors = _compare_with_differences(model, x, y, key)
        report_progress(1, steps, "Theorem 2, Eq. 3")
        estimates = _estimate_gradients(model, layers, x, y, [key + 1 + draw for draw in range(draws)])
        checks: list[LayerCheck] = []
        for number, (path, layer) in enumerate(layers.items()):
            name = path.removesuffix("noise").removesuffix(".") or "the model"
            report_progress(2 + number, steps, f"Theorem 2, {name}")
            slope = _estimate_slope(model, layer, x, y, [key + 1 + draws + draw for draw in range(draws)])
            errors = (autograd_errors[path], difference_errors[path])
            checks.append(LayerCheck(name, layer.sigma.numel(), *errors, estimates[path], slope))
        report_progress(steps, steps, "done")
    return checks


@contextmanager
def _prepare_for_check(model: nn.Module) -> Generator[None]:
    """Put a model into eval mode with active noise, and restore it afterwards."""
    with preserve_modes(model, training=False):
        for layer in noise_layers(model).values():
            layer.train()
        yield


def _compute_loss(model: nn.Module, x: Tensor, y: Tensor, key: int) -> Tensor:
    with sampling(model, "frozen", key=key):
        return functional.cross_entropy(model(x.clone()), y)  # a model may change its input in place


def _compute_gradients(
    model: nn.Module, layers: Mapping[str, NeuronNoise], x: Tensor, y: Tensor, key: int
) -> list[Tensor]:
    """Return Eq. 3 for one draw, by layer; zeros where the loss does not depend on it."""
    with torch.enable_grad():
        loss = _compute_loss(model, x, y, key)
        levels = [layer.sigma for layer in layers.values()]
        return list(torch.autograd.grad(loss, levels, allow_unused=True, materialize_grads=True))


def _compare_with_autograd(
    model: nn.Module, layers: Mapping[str, NeuronNoise], x: Tensor, y: Tensor, key: int
) -> dict[str, float | None]:
    """Return the relative distance of each layer's gradient from autograd's with the same eps."""
    ours = _compute_gradients(model, layers, x, y, key)
    plain = {path: layer for path, layer in layers.items() if _has_eq_1_noise(layer)}
    with _use_autograd(plain.values()):
        theirs = _compute_gradients(model, layers, x, y, key)
    pairs = zip(layers, ours, theirs, strict=True)
    return {path: _compute_distance(a, b) if path in plain else None for path, a, b in pairs}


def _has_eq_1_noise(layer: NeuronNoise) -> bool:
    return type(layer).noisy is NeuronNoise.noisy and layer.estimator == "pathwise"


@contextmanager
def _use_autograd(layers: Iterable[NeuronNoise]) -> Generator[None]:
    """Let layers compute Eq. 1 by torch operations, which autograd differentiates."""
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.use_sampler, None)
            layer.use_sampler(_sample_with_autograd)
        yield


def _sample_with_autograd(layer: NeuronNoise, x: Tensor, key: Tensor, draws: int) -> Tensor:
    eps = standard_normal(key, draws, len(x) // draws, math.prod(x.shape[1:])).view(x.shape)
    y = x + layer.sigma * eps
    return (y if layer.mu is None else y + layer.mu).to(x.dtype)


def _compare_with_differences(model: nn.Module, x: Tensor, y: Tensor, key: int) -> dict[str, float]:
    """Return the relative distance of each layer's gradient from central differences in float64."""
    try:
        exact = copy.deepcopy(model).double()
        layers = {path: layer for path, layer in noise_layers(exact).items() if layer.sigma.requires_grad}
        gradients = _compute_gradients(exact, layers, x.double(), y, key)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(model).__name__} does not compute in float64 ({error}); let it follow the dtype of its input"
        ) from error
    generator = torch.Generator().manual_seed(key % 2**63)
    worst: dict[str, float] = {}
    for (path, layer), gradient in zip(layers.items(), gradients, strict=True):
        errors: list[float] = []
        for _ in range(_DIRECTIONS):
            direction = _draw_direction(layer.sigma, generator)
            step = _STEP * _compute_rms(layer.sigma)
            slope = _compute_central_difference(exact, layer, direction, step, x.double(), y, key)
            errors.append(_compute_relative_error(slope - float((gradient * direction).sum()), float(gradient.norm())))
        worst[path] = max(errors)
    return worst


def _estimate_gradients(
    model: nn.Module, layers: Mapping[str, NeuronNoise], x: Tensor, y: Tensor, keys: Sequence[int]
) -> dict[str, MeanEstimate]:
    """Return the mean of Eq. 3 over draws, by layer, along the growth of all |sigma|."""
    along: dict[str, list[float]] = {path: [] for path in layers}
    for key in keys:
        for (path, layer), gradient in zip(layers.items(), _compute_gradients(model, layers, x, y, key), strict=True):
            along[path].append(float((gradient * _get_growth_direction(layer.sigma)).sum()))
    return {path: _estimate_mean(values) for path, values in along.items()}


def _estimate_slope(model: nn.Module, layer: NeuronNoise, x: Tensor, y: Tensor, keys: Sequence[int]) -> MeanEstimate:
    """Return the derivative of the expected loss along the growth of all |sigma|, with common random numbers."""
    step, growth = _WIDE_STEP * _compute_rms(layer.sigma), _get_growth_direction(layer.sigma)
    return _estimate_mean([_compute_central_difference(model, layer, growth, step, x, y, key) for key in keys])


@torch.no_grad()
def _compute_central_difference(
    model: nn.Module, layer: NeuronNoise, direction: Tensor, step: float, x: Tensor, y: Tensor, key: int
) -> float:
    """Return ``(L(sigma + step d) - L(sigma - step d)) / (2 step)`` for one draw."""
    before = layer.sigma.detach().clone()
    try:
        layer.sigma.copy_(before + step * direction)
        above = float(_compute_loss(model, x, y, key))
        layer.sigma.copy_(before - step * direction)
        below = float(_compute_loss(model, x, y, key))
    finally:
        layer.sigma.copy_(before)
    return (above - below) / (2 * step)


def _compute_rms(sigma: Tensor) -> float:
    """Return the root mean square of sigma; 1 if all are 0."""
    return float(sigma.detach().square().mean().sqrt()) or 1.0


def _get_growth_direction(sigma: Tensor) -> Tensor:
    """Return the direction in which every |sigma| grows equally."""
    return torch.where(sigma.detach() < 0, -1.0, 1.0).to(sigma.dtype)


def _draw_direction(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


def _compute_distance(a: Tensor, b: Tensor) -> float:
    return _compute_relative_error(float((a.double() - b.double()).norm()), float(b.double().norm()))


def _compute_relative_error(error: float, size: float) -> float:
    """Return an error relative to the size of the exact value; infinite for NaN."""
    if not (math.isfinite(error) and math.isfinite(size)):
        return math.inf
    return abs(error) / size if size else (0.0 if error == 0 else math.inf)


def _estimate_mean(values: Sequence[float]) -> MeanEstimate:
    value = math.fsum(values) / len(values)
    spread = math.fsum((v - value) ** 2 for v in values) / (len(values) - 1)
    return MeanEstimate(value, math.sqrt(spread / len(values)))
