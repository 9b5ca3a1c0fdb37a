"""Theorem 2: the estimate of Eq. 3 is unbiased for the derivative of the expected loss, by Monte Carlo."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from noiseprop import add_noise, reset_noise, sigmas
from noiseprop.nets import cnn, mlp


def small_mlp():
    return mlp((16, 8, 6, 10)), torch.rand(1, 1, 4, 4)


def small_cnn():
    return cnn(), torch.rand(1, 1, 28, 28)


@pytest.mark.parametrize(("build", "site"), [(small_mlp, "fc"), (small_cnn, "all")])
def test_the_mean_gradient_is_the_slope_of_the_expected_loss(build, site):
    """Along one direction, all sigmas growing: within 4 standard errors of a central difference, with common noise."""
    torch.manual_seed(0)
    model, image = build()
    model = add_noise(model, model.sites[site], init=0.5, example=image, key=1).double()
    levels = sigmas(model)
    for sigma in levels:
        nn.init.uniform_(sigma, 0.2, 1.0)
    directions = [torch.rand_like(sigma) / sum(s.numel() for s in levels) ** 0.5 for sigma in levels]
    samples, passes, step = 500, (40 if site == "fc" else 4), 1e-3
    x, y = image.double().expand(samples, *image.shape[1:]), torch.full((samples,), 3)

    def per_sample() -> torch.Tensor:
        return cross_entropy(model(x), y, reduction="none")

    def shifted(t: float) -> torch.Tensor:
        for sigma, direction in zip(levels, directions, strict=True):
            sigma.data.add_(direction, alpha=t)
        with torch.no_grad():
            loss = per_sample()
        for sigma, direction in zip(levels, directions, strict=True):
            sigma.data.sub_(direction, alpha=t)
        return loss

    estimates, differences = [], []
    for number in range(passes):
        reset_noise(model, number)
        gradients = torch.autograd.grad(per_sample().mean(), levels)
        estimates.append(sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)))
        # the finite difference from noise of its own, equal on both sides
        reset_noise(model, 1000 + number)
        up = shifted(step)
        reset_noise(model, 1000 + number)
        differences.append((up - shifted(-step)).mean() / (2 * step))
    estimate, difference = torch.stack(estimates), torch.stack(differences)
    error = ((estimate.var() + difference.var()) / passes).sqrt()
    assert (estimate.mean() - difference.mean()).abs() < 4 * error
    assert estimate.mean().abs() > 4 * error  # the slope is not lost in the error
