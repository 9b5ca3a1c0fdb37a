import sys

import numpy as np
import pytest
import torch
from scipy.optimize import fmin_l_bfgs_b
from scipy.special import log_softmax, softmax
from torch import nn

from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.attacks.lbfgs import _minimise_distance, lbfgs_szegedy
from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import add_noise


@pytest.fixture
def softmax_regression():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 4)).double()
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(8, 40, generator=generator, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def by_fmin(model, x, target, c):
    """Return the same minimum from the formula: softmax regression written out in NumPy, over x + r instead of r."""
    W, b = (parameter.detach().numpy() for parameter in model[1].parameters())

    def objective(z):
        distance = np.sqrt(((z - x) ** 2).sum() + 1e-300)
        logits = W @ z + b
        slope = softmax(logits) - np.eye(len(b))[target]
        return c * distance - log_softmax(logits)[target], c * (z - x) / distance + W.T @ slope

    return fmin_l_bfgs_b(objective, x.copy(), bounds=[(0, 1)] * len(x), factr=10, pgtol=1e-10)


@pytest.mark.parametrize("c", [0.01, 0.1, 0.3])
def test_each_minimisation_reaches_the_minimum_of_fmin_l_bfgs_b(softmax_regression, c):
    model, x, y = softmax_regression
    for image, label in zip(x, y, strict=True):
        target = (label + 1) % 4
        expected, value, _ = by_fmin(model, image.numpy(), int(target), c)
        with prepare_for_attack(model):
            found = _minimise_distance(model, image[None], target[None], c=c, steps=1000, draws=1)
        distance = (found - image).norm()
        loss = c * distance + nn.functional.cross_entropy(model(found).detach(), target[None])
        assert distance > 0.01
        assert float(loss) == pytest.approx(float(value), abs=1e-6)
        np.testing.assert_allclose(found[0].numpy(), expected, atol=5e-3)


def test_finds_the_nearest_point_beyond_a_plane():
    """Two classes: where no bound is met, the nearest point of the other class is the foot on w x + b = 0."""
    torch.manual_seed(8)
    model = nn.Linear(20, 2).double()
    x = 0.4 + 0.2 * torch.rand(5, 20, dtype=torch.float64)
    w, b = (p[1] - p[0] for p in model.parameters())
    margin = (x @ w + b).detach()
    y = (margin > 0).long()
    foot = (x - margin[:, None] * w / w.square().sum()).detach()
    assert 0 < foot.min() < foot.max() < 1
    x_adv = lbfgs_szegedy(model, x, y, searches=25)
    assert (model(x_adv).argmax(1) != y).all()
    torch.testing.assert_close((x_adv - x).norm(dim=1), (foot - x).norm(dim=1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(x_adv, foot, rtol=0, atol=1e-3)


def test_reaches_given_targets_and_more_searches_come_nearer(conv, batch):
    x = batch[0][:2]
    y = conv(x).argmax(1)
    target = (y + 1) % 5
    few, many = (lbfgs_szegedy(conv, x, y, target=target, searches=searches) for searches in (3, 9))
    assert torch.equal(conv(few).argmax(1), target)
    assert torch.equal(conv(many).argmax(1), target)
    assert (many - x).norm() < 0.8 * (few - x).norm()
    assert 0 <= many.min() <= many.max() <= 1


def test_images_that_are_wrong_already_come_back(conv, batch):
    x = batch[0][:6]
    right = conv(x).argmax(1)
    y = torch.where(torch.arange(len(x)) % 2 == 0, right, (right + 1) % 5)
    x_adv = lbfgs_szegedy(conv, x, y, searches=6)
    moved = (x_adv != x).flatten(1).any(1)
    assert torch.equal(moved, y == right)
    assert (conv(x_adv).argmax(1) != y).all()


def test_the_search_goes_by_tens_then_halves_and_keeps_the_nearest_success(monkeypatch):
    """Minimisers that get farther away as c rises, and miss above c = 50: the first success is the nearest."""
    tried = []

    def minimise(_model, x, _target, *, c, **_settings):
        tried.append(c)
        return x + (0.5 + 0.001 * len(tried) if c <= 50 else 0)

    monkeypatch.setattr(sys.modules[lbfgs_szegedy.__module__], "_minimise_distance", minimise)
    model = nn.Linear(1, 2).double()
    model.weight.data[:, 0], model.bias.data[:] = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.0])
    x = torch.tensor([[0.25]], dtype=torch.float64)
    x_adv = lbfgs_szegedy(model, x, torch.tensor([0]), searches=5)
    assert tried == pytest.approx([1, 10, 100, 1000**0.5, (100 * 1000**0.5) ** 0.5])
    assert float(x_adv) == pytest.approx(0.25 + 0.501)


def test_a_target_out_of_reach_gives_the_closest_attempt(batch):
    class Never(nn.Module):  # class 4 is never chosen, but its logit can be raised
        def forward(self, x):
            v = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([0 * v, 0 * v + 5, 0 * v, 0 * v, v], 1)

    x = batch[0][:2]
    x_adv = lbfgs_szegedy(Never(), x, torch.tensor([1, 1]), target=torch.tensor([4, 4]), searches=4)
    assert (x_adv.flatten(1).mean(1) > x.flatten(1).mean(1) + 0.1).all()


def test_a_random_network_is_scored_by_fresh_draws_and_minimised_on_fixed_ones(batch):
    torch.manual_seed(9)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 30), nn.Sigmoid(), nn.Linear(30, 5))
    model[3].weight.data.mul_(10)
    add_noise(model, ["1"], init=0.1, example=batch[0], key=2)
    x = batch[0][:4]
    with torch.no_grad():
        mean = torch.stack([model(x) for _ in range(200)]).mean(0)
    y = mean.argmax(1)
    x_adv = lbfgs_szegedy(model, x, y, searches=6, draws=8)
    with torch.no_grad():
        after = torch.stack([model(x_adv) for _ in range(200)]).mean(0)
    assert (after.argmax(1) != y).sum() >= 3  # at the border of the class, where 32 draws may err
    runner_up = mean.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    gap = (mean.gather(1, y[:, None]) - mean.gather(1, runner_up)).squeeze(1)
    gap_after = (after.gather(1, y[:, None]) - after.gather(1, runner_up)).squeeze(1)
    assert (gap_after.abs() < 0.5 * gap).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"searches": 0}, "searches is 0"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"labels have .* shape \(3,\)"),
        ({"target": torch.full((16,), 5)}, r"labels lie in 5\.\.5"),
    ],
)
def test_bad_settings_raise_an_error(conv, batch, change, message):
    with pytest.raises(InputError, match=message):
        lbfgs_szegedy(conv, *batch, **change)
