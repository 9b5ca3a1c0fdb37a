"""Whether Theorems 1 and 2 hold for a model as it stands: its noise, and what its own code does behind the noise.

Three looks at every noise layer whose sigma is learned:

1. Theorem 1, the op: Eq. 3's gradient beside autograd's, through ``x + mu + sigma * eps`` written out, with the same
   eps. They differ where the kernels are wrong on this machine.
2. Theorem 1, the model: the same gradient beside finite differences of the loss, noise held. They differ where a
   backward pass of the model's own is wrong.
3. Theorem 2: the mean of Eq. 3 over many draws beside a finite difference of the expected loss, with common random
   numbers on its two sides and other draws than Eq. 3's. They differ where the loss jumps, as behind a hard threshold:
   each draw's gradient is then right and their mean is not the derivative of the mean.
"""

import copy
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.kernels.philox import standard_normal
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sampling import sampling

SAME = 1e-3  # relative error at most between two ways to compute one gradient in float32
DIFFERENCE = 5e-3  # and to finite differences, whose steps may cross a kink of a ReLU
STANDARD_ERRORS = 4.0
_STEP, _WIDE_STEP = 1e-6, 0.05  # of sigma's size: for one draw in float64, and for the expected loss
_PROBES = 3  # random directions a layer

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Mean:
    """A mean over draws and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class LayerCheck:
    """What was found of one noise layer.

    Attributes:
        path: of the module that carries the noise.
        sigmas: their number.
        same: relative distance of Eq. 3 from autograd with the same eps; None where the layer's noise has another form.
        difference: relative distance of Eq. 3 from finite differences with the noise held.
        estimate: mean of Eq. 3 over draws, along the direction in which all |sigma| grow.
        derivative: of the expected loss in that direction, by differences with common random numbers.
    """

    path: str
    sigmas: int
    same: float | None
    difference: float
    estimate: Mean
    derivative: Mean

    @property
    def apart(self) -> float:
        """How many standard errors of their difference `estimate` and `derivative` are apart."""
        distance = abs(self.estimate.value - self.derivative.value)
        error = math.hypot(self.estimate.error, self.derivative.error)
        return distance / error if error else (0.0 if distance == 0 else math.inf)

    @property
    def theorem_1(self) -> bool:
        """Whether Eq. 3 is the derivative of each draw's loss."""
        return (self.same is None or self.same <= SAME) and self.difference <= DIFFERENCE

    @property
    def theorem_2(self) -> bool:
        """Whether Eq. 3 is on average the derivative of the expected loss."""
        return self.apart <= STANDARD_ERRORS


def check_theorems(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 200, key: int = 0, progress: Progress | None = None
) -> list[LayerCheck]:
    """Check Eq. 3 on a model, layer by layer; the loss is the mean cross-entropy of a batch.

    The model is in eval mode meanwhile, with its noise acting, so that nothing but the noise is random. It is left as
    it was.

    Args:
        model: images (B, C, H, W) to logits (B, classes), with learned noise.
        x: the batch (B, C, H, W); a few images will do.
        y: labels (B,).
        draws: of Theorem 2, for the mean of Eq. 3 and again for the expected loss; 2 or more.
        key: seed of all draws.
        progress: called with the steps done, their number and the next one's name.

    Returns:
        One `LayerCheck` per layer with learned noise, in the model's order.

    Raises:
        InputError: no sigma is learned, fewer than 2 draws are asked for, or the model does not compute in float64.
    """
    if draws < 2:
        raise InputError(f"check_theorems got draws={draws}; take 2 or more, 200 for a sharp check")
    layers = {path: layer for path, layer in noise_layers(model).items() if layer.sigma.requires_grad}
    if not layers:
        raise InputError(f"{type(model).__name__} has no learned noise, so there is nothing to check; call add_noise")
    tell = progress or (lambda done, total, name: None)
    steps = 2 + len(layers)
    with _noise_alone(model):
        tell(0, steps, "Theorem 1")
        same, difference = _same(model, layers, x, y, key), _differences(model, x, y, key)
        tell(1, steps, "Theorem 2, Eq. 3")
        estimates = _estimates(model, layers, x, y, [key + 1 + draw for draw in range(draws)])
        found: list[LayerCheck] = []
        for number, (path, layer) in enumerate(layers.items()):
            name = path.removesuffix("noise").removesuffix(".") or "the model"
            tell(2 + number, steps, f"Theorem 2, {name}")
            slope = _slope(model, layer, x, y, [key + 1 + draws + draw for draw in range(draws)])
            row = (name, layer.sigma.numel(), same[path], difference[path], estimates[path], slope)
            found.append(LayerCheck(*row))
        tell(steps, steps, "done")
    return found


@contextmanager
def _noise_alone(model: nn.Module) -> Generator[None]:
    """Eval mode, but for the noise, which acts."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for layer in noise_layers(model).values():
            layer.training = True
        yield
    finally:
        for module, training in modes:
            module.training = training


def _loss(model: nn.Module, x: Tensor, y: Tensor, key: int) -> Tensor:
    with sampling(model, "frozen", key=key):
        return functional.cross_entropy(model(x), y)


def _gradients(model: nn.Module, layers: Mapping[str, NeuronNoise], x: Tensor, y: Tensor, key: int) -> list[Tensor]:
    """Eq. 3 for one draw, by layer; zeros where the loss does not depend on it."""
    with torch.enable_grad():
        loss = _loss(model, x, y, key)
        levels = [layer.sigma for layer in layers.values()]
        return list(torch.autograd.grad(loss, levels, allow_unused=True, materialize_grads=True))


def _same(
    model: nn.Module, layers: Mapping[str, NeuronNoise], x: Tensor, y: Tensor, key: int
) -> dict[str, float | None]:
    """The relative distance of each layer's gradient from the one of the written-out sum with the same eps."""
    ours = _gradients(model, layers, x, y, key)
    plain = {path: layer for path, layer in layers.items() if _is_eq_1(layer)}
    with _written_out(plain.values()):
        theirs = _gradients(model, layers, x, y, key)
    return {path: _distance(a, b) if path in plain else None for path, a, b in zip(layers, ours, theirs, strict=True)}


def _is_eq_1(layer: NeuronNoise) -> bool:
    return type(layer).noisy is NeuronNoise.noisy and layer.estimator == "pathwise"


@contextmanager
def _written_out(layers: Iterable[NeuronNoise]) -> Generator[None]:
    """Let layers compute Eq. 1 by torch's own operations, which autograd differentiates."""
    changed: list[NeuronNoise] = []
    try:
        for layer in layers:
            layer.__dict__["noisy"] = lambda x, key, draws, layer=layer: _eq_1(layer, x, key, draws)
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.__dict__["noisy"]


def _eq_1(layer: NeuronNoise, x: Tensor, key: Tensor, draws: int) -> Tensor:
    eps = standard_normal(key, draws, len(x) // draws, math.prod(x.shape[1:])).view(x.shape)
    y = x + layer.sigma * eps
    return (y if layer.mu is None else y + layer.mu).to(x.dtype)


def _differences(model: nn.Module, x: Tensor, y: Tensor, key: int) -> dict[str, float]:
    """The relative distance of each layer's gradient from central differences, in random directions, in float64."""
    try:
        exact = copy.deepcopy(model).double()
        layers = {path: layer for path, layer in noise_layers(exact).items() if layer.sigma.requires_grad}
        gradients = _gradients(exact, layers, x.double(), y, key)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{type(model).__name__} does not compute in float64 ({error}); make it follow its input's dtype"
        ) from error
    generator = torch.Generator().manual_seed(key % 2**63)
    worst: dict[str, float] = {}
    for (path, layer), gradient in zip(layers.items(), gradients, strict=True):
        errors: list[float] = []
        for _ in range(_PROBES):
            direction = _signs(layer.sigma, generator)
            slope = _central(exact, layer, direction, _STEP * _size(layer.sigma), x.double(), y, key)
            errors.append(_relative(slope - float((gradient * direction).sum()), float(gradient.norm())))
        worst[path] = max(errors)
    return worst


def _estimates(
    model: nn.Module, layers: Mapping[str, NeuronNoise], x: Tensor, y: Tensor, keys: Sequence[int]
) -> dict[str, Mean]:
    """The mean of Eq. 3 over draws, by layer, along the growth of all |sigma|."""
    along: dict[str, list[float]] = {path: [] for path in layers}
    for key in keys:
        for (path, layer), gradient in zip(layers.items(), _gradients(model, layers, x, y, key), strict=True):
            along[path].append(float((gradient * _growth(layer.sigma)).sum()))
    return {path: _mean(values) for path, values in along.items()}


def _slope(model: nn.Module, layer: NeuronNoise, x: Tensor, y: Tensor, keys: Sequence[int]) -> Mean:
    """The derivative of the expected loss in the same direction; both sides of a difference have one draw's noise."""
    step, growth = _WIDE_STEP * _size(layer.sigma), _growth(layer.sigma)
    return _mean([_central(model, layer, growth, step, x, y, key) for key in keys])


@torch.no_grad()
def _central(
    model: nn.Module, layer: NeuronNoise, direction: Tensor, step: float, x: Tensor, y: Tensor, key: int
) -> float:
    """``(L(sigma + step d) - L(sigma - step d)) / (2 step)`` for one draw."""
    before = layer.sigma.detach().clone()
    try:
        layer.sigma.copy_(before + step * direction)
        above = float(_loss(model, x, y, key))
        layer.sigma.copy_(before - step * direction)
        below = float(_loss(model, x, y, key))
    finally:
        layer.sigma.copy_(before)
    return (above - below) / (2 * step)


def _size(sigma: Tensor) -> float:
    """The root of sigma's mean square; 1 where all are 0."""
    return float(sigma.detach().square().mean().sqrt()) or 1.0


def _growth(sigma: Tensor) -> Tensor:
    """The direction in which every |sigma| grows alike."""
    return torch.where(sigma.detach() < 0, -1.0, 1.0).to(sigma.dtype)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


def _distance(a: Tensor, b: Tensor) -> float:
    return _relative(float((a.double() - b.double()).norm()), float(b.double().norm()))


def _relative(error: float, size: float) -> float:
    """An error beside the size of what it is an error of; infinite where it is no number."""
    if not (math.isfinite(error) and math.isfinite(size)):
        return math.inf
    return abs(error) / size if size else (0.0 if error == 0 else math.inf)


def _mean(values: Sequence[float]) -> Mean:
    value = math.fsum(values) / len(values)
    spread = math.fsum((v - value) ** 2 for v in values) / (len(values) - 1)
    return Mean(value, math.sqrt(spread / len(values)))
