"""Test Theorem 2 by Monte Carlo: Eq. 3 is an unbiased estimate of the derivative of the expected loss."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from noiseprop import add_noise, reset_noise, sigmas
from noiseprop.models import cnn, mlp


def small_mlp():
    return mlp((16, 8, 6, 10)), torch.rand(1, 1, 4, 4)


def small_cnn():
    return cnn(), torch.rand(1, 1, 28, 28)


@pytest.mark.parametrize(
    ("build", "site", "samples", "passes"), [(small_mlp, "fc", 500, 40), (small_cnn, "all", 120, 12)]
)
def test_the_mean_gradient_of_every_layer_is_the_slope_of_the_expected_loss(build, site, samples, passes):
    """Compare with a central difference along one direction per layer, within 4 standard errors.

    Both sides of a difference have the same noise; the gradients have independent noise.
    """
    torch.manual_seed(0)
    model, image = build()
    model = add_noise(model, model.sites[site], init=0.5, example=image, key=1).double()
    levels = sigmas(model)
    for sigma in levels:
        nn.init.uniform_(sigma, 0.2, 1.0)
    directions = [torch.rand_like(sigma) / sigma.numel() ** 0.5 for sigma in levels]
    x, y = image.double().expand(samples, *image.shape[1:]), torch.full((samples,), 3)

    def loss(key: int) -> torch.Tensor:
        reset_noise(model, key)
        return cross_entropy(model(x), y)

    @torch.no_grad()
    def shifted(sigma: torch.Tensor, shift: torch.Tensor, key: int) -> torch.Tensor:
        before = sigma.clone()
        sigma.add_(shift)
        found = loss(key)
        sigma.copy_(before)
        return found

    estimates, differences, step = [], [], 1e-3
    for number in range(passes):
        gradients = torch.autograd.grad(loss(number), levels)
        estimates.append(torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]))
        sides = [
            [shifted(sigma, sign * step * d, 1000 + number) for sigma, d in zip(levels, directions, strict=True)]
            for sign in (1, -1)
        ]
        differences.append((torch.stack(sides[0]) - torch.stack(sides[1])) / (2 * step))
    estimate, difference = torch.stack(estimates), torch.stack(differences)  # (passes, layers)
    error = ((estimate.var(0) + difference.var(0)) / passes).sqrt()
    assert ((estimate.mean(0) - difference.mean(0)).abs() < 4 * error).all()
    assert (estimate.mean(0).abs() > 4 * error).all()  # every slope exceeds its error
