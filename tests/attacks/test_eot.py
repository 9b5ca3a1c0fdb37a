import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from noiseprop.attacks import eot as expectation
from noiseprop.attacks.eot import expected_loss, is_random, loss_gradient, prepare_for_attack
from noiseprop.attacks.microbatch import split_batch
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise


def test_one_draw_without_noise_is_plain_autograd(conv, batch):
    x, y = batch[0].clone().requires_grad_(), batch[1]
    losses = functional.cross_entropy(conv(x), y, reduction="none")
    losses.sum().backward()
    with prepare_for_attack(conv):
        found = loss_gradient(conv, x, y)
    torch.testing.assert_close(found.gradient, x.grad, rtol=0, atol=0)
    torch.testing.assert_close(found.loss, losses.detach(), rtol=0, atol=0)


def test_an_images_gradient_does_not_depend_on_its_batch(conv, batch):
    x, y = batch[0].double(), batch[1]
    with prepare_for_attack(conv.double()):
        together = loss_gradient(conv, x, y).gradient
        alone = loss_gradient(conv, x[5:6], y[5:6]).gradient
    torch.testing.assert_close(together[5:6], alone, rtol=0, atol=1e-15)


def test_k_draws_are_the_mean_of_k_single_draws(noisy_conv, batch):
    x, y = batch
    with prepare_for_attack(noisy_conv):
        reset_noise(noisy_conv, 3)
        singles = [loss_gradient(noisy_conv, x, y) for _ in range(5)]
        reset_noise(noisy_conv, 3)
        together = loss_gradient(noisy_conv, x, y, draws=5)
    assert together.logits.shape == (5, 16, 5)
    assert not torch.equal(singles[0].gradient, singles[1].gradient)
    torch.testing.assert_close(together.gradient, torch.stack([one.gradient for one in singles]).mean(0))
    torch.testing.assert_close(together.loss, torch.stack([one.loss for one in singles]).mean(0))


def test_many_draws_come_to_the_expected_loss_and_its_gradient(noisy_linear, linear_batch):
    """Two classes with noise on the logits: E CE = E softplus(d + s e), by Gauss-Hermite quadrature."""
    x, y = linear_batch[0].double(), linear_batch[1]
    model, draws = noisy_linear.double(), 4000
    layer = model[1]
    difference = layer.weight[1 - y] - layer.weight[y]  # (B, 30)
    margin = (difference * x).sum(1) + layer.bias[1 - y] - layer.bias[y]
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    values = margin.detach()[:, None] + 2 * math.sqrt(2) * torch.tensor(nodes)  # (B, 80)
    weights = torch.tensor(weights) / math.sqrt(2 * math.pi)
    loss, slope = ((f(values) * weights).sum(1) for f in (functional.softplus, torch.sigmoid))
    with prepare_for_attack(model):
        found = loss_gradient(model, x, y, draws=draws)
    spread = functional.softplus(values).square().mul(weights).sum(1).sub(loss**2).sqrt() / math.sqrt(draws)
    assert ((found.loss - loss).abs() / spread).max() < 4
    found_slope = (found.gradient * difference.detach()).sum(1) / difference.detach().square().sum(1)
    assert (found_slope - slope).abs().max() < 4 * 0.5 / math.sqrt(draws)
    torch.testing.assert_close(found.gradient, found_slope[:, None] * difference.detach())


def test_equal_images_of_a_batch_meet_different_noise(noisy_conv, batch):
    x, y = batch[0][:1].expand(8, -1, -1, -1), batch[1][:1].expand(8)
    with prepare_for_attack(noisy_conv):
        gradients = loss_gradient(noisy_conv, x, y).gradient
    assert len(gradients.flatten(1).unique(dim=0)) == 8


class Rows(nn.Module):
    """Notes the batch sizes that a network is given."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sizes = inner, []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.inner(x)


@pytest.mark.parametrize("draws", [1, 20])
def test_a_noise_free_model_pays_for_one_pass_only(conv, batch, draws, monkeypatch):
    monkeypatch.setattr(expectation, "sampling", None)  # not even entered
    model = Rows(conv)
    with prepare_for_attack(model):
        found = loss_gradient(model, *batch, draws=draws)
    assert model.sizes == [16]
    assert found.logits.shape == (1, 16, 5)


@pytest.mark.parametrize("mode", [{"mode": "off"}, {"mode": "frozen", "key": 5}])
def test_noise_that_is_off_or_frozen_is_attacked_as_it_is(noisy_conv, batch, mode):
    x, y = batch
    model = Rows(noisy_conv)
    with sampling(model, **mode):
        assert not is_random(model)
        expected = functional.cross_entropy(model(x), y, reduction="none").detach()
        with prepare_for_attack(model):
            found = loss_gradient(model, x, y, draws=20)
    assert model.sizes == [16, 16]
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("at_inference", [False, True])
def test_noise_acts_in_an_attack_where_it_acts_outside(conv, batch, training, at_inference):
    model = add_noise(conv, ["4"], example=batch[0], at_inference=at_inference).train(training)
    acts = training or at_inference
    with prepare_for_attack(model):
        assert is_random(model) == acts
        one, two = (loss_gradient(model, *batch).loss for _ in range(2))
    assert torch.equal(one, two) != acts


@pytest.mark.parametrize("mode", [{"mode": "fresh"}, {"mode": "frozen", "key": 5}])
def test_big_batches_go_through_in_parts_with_the_noise_of_the_whole(noisy_linear, linear_batch, monkeypatch, mode):
    x, y = linear_batch  # (12, 30)
    model = Rows(noisy_linear)

    def passes():
        reset_noise(model, 3)
        with sampling(model, **mode), prepare_for_attack(model):
            found = [loss_gradient(model, x, y, draws=draws) for draws in (1, 4, 1)]
            return [*found, expected_loss(model, x, y, draws=4)]

    whole = passes()
    monkeypatch.setattr(sys.modules[split_batch.__module__], "_SMALL", 0)
    monkeypatch.setattr(sys.modules[split_batch.__module__], "_MAP_VALUES", 5 * 30)  # 12 images in 3 parts
    model.sizes.clear()
    found = passes()
    assert [size for size in model.sizes if size == 4] == 12 * [4]
    for a, b in zip(whole, found, strict=True):
        torch.testing.assert_close(tuple(a), tuple(b))
    assert torch.equal(whole[0].loss, whole[2].loss) == (mode["mode"] == "frozen")
