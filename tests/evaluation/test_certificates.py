import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm
from torch import nn

from noiseprop import NeuronNoise, add_noise, before, sampling
from noiseprop.errors import InputError
from noiseprop.evaluation.certificates import ABSTAIN, bound_probability, certify, certify_kept_pixels
from noiseprop.models import mlp


def linear_classifier(sigma, *, at_input):
    """Two classes, logit difference w x + b, with noise on the input or behind the linear map."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 2)
    if at_input:
        noise = NeuronNoise((1, 2, 2))
        noise.sigma.data = torch.as_tensor(sigma).expand(1, 2, 2).clone()
        return nn.Sequential(noise, nn.Flatten(), linear), linear
    noise = NeuronNoise((2,))
    noise.sigma.data = torch.as_tensor(sigma).expand(2).clone()
    return nn.Sequential(nn.Flatten(), linear, noise), linear


@pytest.mark.parametrize("sigma", [0.3, [[[0.1, 0.2], [0.4, 0.8]]]])
def test_radius_of_a_linear_classifier_approaches_its_distance_to_the_boundary(sigma):
    model, linear = linear_classifier(torch.tensor(sigma), at_input=True)
    x = torch.rand(20, 1, 2, 2)
    w = (linear.weight[0] - linear.weight[1]).detach().double()
    margin = x.flatten(1).double() @ w + (linear.bias[0] - linear.bias[1]).detach().double()
    scale = torch.as_tensor(sigma).expand(1, 2, 2).flatten().double()
    exact = (margin.abs() / (w * scale).norm()).numpy()  # Phi^-1(p) for p = Phi(|margin| / |Sigma w|)
    found = certify(model, x, (margin < 0).long(), n=100_000)
    certain = found.predicted != ABSTAIN
    limit = norm.ppf(bound_probability(np.array([100_000]), 100_000, alpha=0.001))[0]
    assert certain.sum() >= 15
    assert found.correct[certain].all()
    assert (found.radius[certain] <= np.minimum(exact[certain], limit) + 0.02).all()
    probability = norm.cdf(exact[certain])
    error = 7.1 * np.sqrt(probability * (1 - probability) / 100_000)  # 3.1 of the bound, 4 of the sample
    expected = np.minimum(norm.ppf(np.maximum(probability - error - 7 / 100_000, 0.5)), limit)
    assert (found.radius[certain] >= expected - 1e-6).all()
    np.testing.assert_allclose(found.l2, found.radius * float(scale.min()), rtol=1e-6)
    np.testing.assert_allclose(found.linf, found.radius / float(scale.pow(-2).sum().sqrt()), rtol=1e-6)
    np.testing.assert_allclose(found.mean_axis, found.radius * float(scale.log().mean().exp()), rtol=1e-6)


def test_noise_behind_the_first_linear_layer_is_measured_through_its_weights():
    model, linear = linear_classifier(torch.tensor([0.5, 0.25]), at_input=False)
    x = torch.rand(6, 1, 2, 2)
    found = certify(model, x, torch.zeros(6, dtype=torch.long), n=2000)
    matrix = (linear.weight.detach() / torch.tensor([[0.5], [0.25]])).double()
    np.testing.assert_allclose(found.l2 * float(torch.linalg.matrix_norm(matrix, 2)), found.radius, rtol=1e-5)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)  # the maximum over a box is at a corner
    worst = float((corners @ matrix.T).norm(dim=1).max())
    assert (found.linf * worst <= found.radius + 1e-9).all()
    assert (found.linf * 2 * worst >= found.radius - 1e-9).all()
    assert found.mean_axis is None


def test_no_point_inside_the_certified_radius_changes_the_class():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.normal_(network[1].weight, std=2.0)
    model = nn.Sequential(NeuronNoise((1, 3, 3), init=0.3), network)
    x = torch.rand(12, 1, 3, 3)
    found = certify(model, x, torch.zeros(12, dtype=torch.long), n=5000)
    certain = np.flatnonzero((found.predicted != ABSTAIN) & (found.l2 > 0.05))
    assert len(certain) >= 3
    for i in certain:
        delta = torch.zeros(1, 1, 3, 3, requires_grad=True)
        for _ in range(20):  # climb the expected loss inside the ball
            with sampling(model, draws=64):
                loss = nn.functional.cross_entropy(
                    model(x[i : i + 1] + delta).flatten(0, 1), torch.full((64,), int(found.predicted[i]))
                )
            (gradient,) = torch.autograd.grad(loss, delta)
            moved = delta.detach() + 0.1 * gradient / gradient.norm().clamp_min(1e-12)
            delta = (moved * (0.999 * found.l2[i] / moved.norm()).clamp(max=1.0)).requires_grad_()
        with torch.no_grad(), sampling(model, draws=20_000):
            votes = torch.bincount(model(x[i : i + 1] + delta.detach()).flatten(0, 1).argmax(-1), minlength=3)
        assert int(votes.argmax()) == found.predicted[i]


def test_bound_is_clopper_and_pearson_s():
    hits = np.array([0, 1, 50, 99, 100])
    expected = [0, *beta.ppf(0.01, hits[1:], 100 - hits[1:] + 1)]
    np.testing.assert_allclose(bound_probability(hits, 100, alpha=0.01), expected, rtol=1e-10)
    assert bound_probability(np.array([100]), 100, alpha=0.01)[0] == pytest.approx(0.01 ** (1 / 100))


def test_a_coin_abstains():
    model = nn.Sequential(NeuronNoise((1, 1, 1), init=1.0), nn.Flatten(), nn.Linear(1, 2))
    nn.init.zeros_(model[2].bias)
    found = certify(model, torch.zeros(1, 1, 1, 1), torch.tensor([0]), n=1000)
    assert (found.predicted.tolist(), found.radius.tolist(), found.correct.tolist()) == ([ABSTAIN], [0.0], [False])
    assert found.certified_accuracy(0.0) == 0


def test_equal_seeds_give_equal_certificates():
    model = nn.Sequential(NeuronNoise((1, 2, 2), init=0.5), nn.Flatten(), nn.Linear(4, 2))
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0])
    first, again = certify(model, x, y, n=500, seed=3), certify(model, x, y, n=500, seed=3)
    np.testing.assert_array_equal(first.radius, again.radius)


def test_paper_networks_are_certified_as_they_are():
    model = add_noise(mlp(), "linear", example=torch.zeros(1, 1, 28, 28))
    found = certify(model, torch.rand(2, 1, 28, 28), torch.tensor([0, 1]), n0=20, n=100)
    assert found.l2.shape == (2,)


def test_kept_pixels_are_certified_as_isotropic_noise():
    model = nn.Sequential(NeuronNoise((1, 2, 2), init=0.5), nn.Flatten(), nn.Linear(4, 2))
    found = certify(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), n=500)
    radii = certify_kept_pixels(found, sigma=0.5, kept=2)
    np.testing.assert_allclose(radii["l2"], 0.5 * found.radius)
    np.testing.assert_allclose(radii["linf"], 0.5 * found.radius / math.sqrt(2))


class Bypass(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = NeuronNoise((1, 2, 2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.noise(x).flatten(1)) + self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "no noise at inference"),
        (
            add_noise(
                nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
                ["3"],
                example=torch.zeros(1, 1, 2, 2),
            ),
            "does not follow an affine map",
        ),
        (
            add_noise(
                nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)),
                before(nn.Linear),
                example=torch.zeros(1, 1, 2, 2),
            ),
            None,
        ),
        (Bypass(), "the input reaches the output past"),
        (nn.Sequential(NeuronNoise((1, 2, 2), init=0.0), nn.Flatten(), nn.Linear(4, 2)), r"min \|sigma\| = 0"),
    ],
)
def test_noise_that_does_not_certify_is_explained(model, sentence):
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    if sentence is None:
        assert certify(model, x, y, n=50).n == 50
        return
    with pytest.raises(InputError, match=sentence):
        certify(model, x, y, n=50)
