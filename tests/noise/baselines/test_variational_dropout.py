import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

import noiseprop
from noiseprop.errors import InputError
from noiseprop.noise import baselines
from noiseprop.noise.baselines.variational_dropout import DropoutKL


def dropped(size: int, **options: object) -> nn.Module:
    net = nn.Sequential(nn.Linear(size, size, bias=False)).train()
    net[0].weight.data = torch.eye(size)
    return baselines.variational_dropout(net, example=torch.zeros(1, size), **options)


def test_noise_multiplies_the_inputs_by_normals_of_mean_one_and_variance_alpha() -> None:
    net = dropped(3, alpha=0.36)
    x = torch.tensor([[1.0, -5.0, 0.0]])
    with torch.no_grad():
        y = net(x.expand(20_000, 3))
    torch.testing.assert_close(y.mean(0), x[0], rtol=0.03, atol=0)
    torch.testing.assert_close(y.var(0), 0.36 * x[0] ** 2, rtol=0.05, atol=0)
    assert stats.kstest(((y[:, 1] / -5 - 1) / 0.6).numpy(), "norm").pvalue > 1e-3


def test_gradients_of_sigma_and_of_the_input() -> None:
    net = dropped(4)
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    y = net(x)
    factor = (y / x).detach()
    (sigma,) = noiseprop.sigmas(net)
    to_sigma, to_x = torch.autograd.grad((y * weight).sum(), [sigma, x])
    torch.testing.assert_close(to_x, weight * factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_sigma, (weight * x * (factor - 1) / 0.5).sum(0).detach(), rtol=1e-3, atol=1e-4)


def test_the_mean_weights_predict_at_inference() -> None:
    net = dropped(4).eval()
    x = torch.randn(6, 4)
    assert torch.equal(net(x), x)


def divergence(alpha: float) -> float:
    """-KL up to a constant, from its definition: log(alpha) / 2 - E log|w| for w ~ N(1, alpha)."""
    std = math.sqrt(alpha)
    density = stats.norm(1, std).pdf
    points = sorted({0.0, 1.0, 1 - 8 * std, 1 + 8 * std})
    total = 0.0
    for low, high in pairwise(points):
        total += integrate.quad(lambda w: math.log(abs(w)) * density(w) if w else 0.0, low, high, limit=500)[0]
    return 0.5 * math.log(alpha) - total


def test_the_divergence_is_that_of_its_definition() -> None:
    net = dropped(1)
    kl = DropoutKL(net, images=1)
    (sigma,) = noiseprop.sigmas(net)
    alphas = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    exact = np.array([divergence(a) for a in alphas])
    ours = []
    for alpha in alphas:
        sigma.data.fill_(math.sqrt(alpha))
        ours.append(-kl.term().item())
    # the paper's cubic is an approximation; both are known up to a constant
    assert np.ptp(exact) > 0.5
    np.testing.assert_allclose(np.array(ours) - ours[-1], exact - exact[-1], atol=0.02)
    assert ours[-1] == pytest.approx(0, abs=1e-6)


def test_gradient_and_projection_of_the_divergence() -> None:
    net = dropped(3).double()
    kl = DropoutKL(net, images=50)
    (sigma,) = noiseprop.sigmas(net)
    sigma.data = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda _: kl.term(), (sigma,))
    kl.backward(torch.zeros((), dtype=torch.float64))
    a = sigma.detach() ** 2
    slope = 0.5 / a + 1.16145124 - 2 * 1.50204118 * a + 3 * 0.58629921 * a**2
    torch.testing.assert_close(sigma.grad, -slope * 2 * sigma.detach() / 50, rtol=1e-9, atol=0)
    sigma.data = torch.tensor([0.0, -0.5, 1.7], dtype=torch.float64)
    kl.project()
    assert sigma.tolist() == [1e-4, 0.5, 1.0]


def test_errors() -> None:
    for alpha in (0.0, 1.5, math.nan):
        with pytest.raises(InputError, match="alpha"):
            dropped(2, alpha=alpha)
    with pytest.raises(InputError, match="variational_dropout"):
        DropoutKL(nn.Linear(2, 2), 10)
    with pytest.raises(InputError, match="at least 1"):
        DropoutKL(dropped(2), 0)
