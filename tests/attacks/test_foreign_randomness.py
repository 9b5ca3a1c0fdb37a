"""Attacks on networks whose randomness comes from elsewhere: K draws are K independent passes of every source."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from noiseprop import add_noise, sampling
from noiseprop.attacks import apgd, fgsm, lbfgs, pgd, spsa
from noiseprop.attacks.eot import expected_loss, is_random, loss_gradient, prepare_for_attack
from noiseprop.attacks.randomness import detect_foreign_randomness, keep_random_states
from noiseprop.errors import InputError


class Counted(nn.Module):
    """Count the passes."""

    def __init__(self):
        super().__init__()
        self.linear, self.passes = nn.Linear(30, 2), 0

    def forward(self, x):
        self.passes += 1
        return self.classify(x.flatten(1))


class Bayesian(Counted):
    """One weight draw for the whole batch, from torch."""

    def classify(self, x):
        weight = self.linear.weight + 0.5 * torch.randn_like(self.linear.weight)
        return functional.linear(x, weight, self.linear.bias)


class Shifted(Counted):
    """One shift for the whole batch, from Python."""

    def classify(self, x):
        return self.linear(x.roll(random.randrange(30), dims=1))


class Masked(Counted):
    """One mask for each image, from NumPy."""

    def classify(self, x):
        mask = torch.from_numpy(np.random.default_rng(np.random.randint(2**31)).random(tuple(x.shape)) < 0.7)
        return self.linear(x * mask.to(x.dtype))


class MonteCarloDropout(Counted):
    """Dropout that stays on in eval mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def classify(self, x):
        return self.linear(self.dropout(x))


def build(kind):
    torch.manual_seed(3)
    model = kind().eval()
    if kind is MonteCarloDropout:
        model.dropout.train()
    return model


KINDS = [Bayesian, Shifted, Masked, MonteCarloDropout]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request):
    return build(request.param)


@pytest.fixture
def images(linear_batch):
    x, y = linear_batch
    return x.view(len(x), 1, 5, 6), y


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_k_draws_are_k_passes_of_the_network(model, images):
    x, y = images
    with prepare_for_attack(model, x):
        assert is_random(model)
        seed_everything(5)
        found = loss_gradient(model, x, y, draws=7)
        seed_everything(5)
        losses, gradients, logits = [], [], []
        for _ in range(7):
            part = x.clone().requires_grad_()
            logits.append(model(part))
            losses.append(functional.cross_entropy(logits[-1], y, reduction="none"))
            gradients.append(torch.autograd.grad(losses[-1].sum(), part)[0])
        seed_everything(5)
        scored, more = expected_loss(model, x, y, draws=7)
    torch.testing.assert_close(found.gradient, torch.stack(gradients).mean(0))
    torch.testing.assert_close(found.loss, torch.stack(losses).mean(0))
    torch.testing.assert_close(found.logits, torch.stack(logits))
    torch.testing.assert_close(scored, found.loss)
    assert torch.equal(more, found.logits)
    assert not torch.equal(found.logits[0], found.logits[1])


@pytest.mark.parametrize(
    ("attack", "options", "gradients"),
    [
        (fgsm, {}, 1),
        (pgd, {"step": 0.02, "steps": 4}, 4),
        (apgd, {"steps": 4}, 5),
        (lbfgs, {"step": 0.1, "steps": 3}, 3),
    ],
)
def test_no_attack_averages_over_fewer_draws_than_asked(model, images, attack, options, gradients):
    x, y = images
    eps = {} if attack is lbfgs else {"eps": 0.1}
    model.passes = 0
    attack(model, x, y, **eps, **options, draws=6)
    assert model.passes >= 6 * gradients


def test_expectation_makes_the_attack_stronger(images):
    """One gradient of a network with large weight noise points in the direction of that noise."""
    x, y = images
    model = build(Bayesian)

    def accuracy(attacked):
        with torch.no_grad(), keep_random_states(seed=1):
            return torch.stack([(model(attacked).argmax(-1) == y).float().mean() for _ in range(1000)]).mean().item()

    with keep_random_states(seed=0):
        one, many = (accuracy(pgd(model, x, y, eps=0.1, step=0.05, steps=3, draws=k)) for k in (1, 100))
    assert many < one - 0.01


def test_dropout_that_the_user_keeps_on_stays_on(images):
    x, _ = images
    model = build(MonteCarloDropout)
    with prepare_for_attack(model, x):
        assert model.dropout.training
        assert not model.linear.training
    model.train()
    with prepare_for_attack(model, x):
        assert not model.dropout.training
        assert not is_random(model)
    assert model.dropout.training
    assert model.training


def test_live_noise_does_not_hide_other_randomness(images):
    x, y = images
    model = add_noise(nn.Sequential(build(Bayesian), nn.Linear(2, 2)), ["1"], init=0.01, example=x).eval()
    inner = model[0]
    assert detect_foreign_randomness(model, x)
    with prepare_for_attack(model, x):
        inner.passes = 0
        found = loss_gradient(model, x, y, draws=5)
    assert inner.passes >= 5
    weights = torch.stack([torch.linalg.lstsq(x.flatten(1), logits).solution for logits in found.logits])
    assert (weights[0] - weights[1]).abs().max() > 0.05  # the draws differ by the weights, not by sigma alone


def test_networks_without_foreign_randomness_are_not_called_random(linear, noisy_conv, batch):
    x, _ = batch
    assert not detect_foreign_randomness(noisy_conv, x)
    with prepare_for_attack(linear, torch.rand(5, 30)):
        assert not is_random(linear)
    with sampling(noisy_conv, "off"), prepare_for_attack(noisy_conv, x):
        assert not is_random(noisy_conv)


def test_the_trial_leaves_all_random_states_and_the_noise_as_they_were(noisy_conv, batch):
    masked = build(Masked)
    seed_everything(2)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    keys = [module.key.clone() for module in noisy_conv.modules() if hasattr(module, "key")]
    assert detect_foreign_randomness(masked, torch.linspace(0, 1, 120).view(4, 30))
    assert not detect_foreign_randomness(noisy_conv, batch[0])
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(
        torch.equal(key, module.key)
        for key, module in zip(keys, (m for m in noisy_conv.modules() if hasattr(m, "key")), strict=True)
    )


def test_frozen_draws_of_a_key_repeat(model, images):
    x, y = images
    with prepare_for_attack(model, x):
        first, again = (loss_gradient(model, x, y, draws=4, key=9) for _ in range(2))
        other = loss_gradient(model, x, y, draws=4, key=10)
    assert torch.equal(first.gradient, again.gradient)
    assert not torch.equal(first.gradient, other.gradient)


def test_early_stopping_is_an_error_for_every_random_network(model, images):
    x, y = images
    with pytest.raises(InputError, match="a miss may be the luck of one draw"):
        pgd(model, x, y, eps=0.1, step=0.1, steps=2, stop_when_broken=True)


def test_query_attacks_average_too(model, images):
    x, y = images
    model.passes = 0
    spsa(model, x, y, eps=0.1, step=0.1, steps=1, directions=2, draws=5)
    assert model.passes >= 2 * 2 * 5
