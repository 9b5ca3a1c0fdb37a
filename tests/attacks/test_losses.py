"""Losses of attacks: closed forms, gradients, scale, and the vote of a random network."""

import pytest
import torch
from torch import nn

from noiseprop import add_noise, reset_noise, sampling
from noiseprop.attacks import apgd, pgd
from noiseprop.attacks.eot import loss_gradient, prepare_for_attack
from noiseprop.attacks.losses import LOSSES, AttackGoal, dlr_loss, margin_loss, normalized_cross_entropy
from noiseprop.errors import InputError


def test_losses_have_their_closed_forms():
    z, y = torch.tensor([[3.0, 1.0, 0.0, -2.0], [0.0, 4.0, 1.0, 2.0]]).double(), torch.tensor([0, 2])
    assert margin_loss(z, y).tolist() == [-2.0, 3.0]
    torch.testing.assert_close(dlr_loss(z, y), torch.tensor([-2 / 3, 3 / 3]).double())
    spread = z.sub(z.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    expected = -(z / spread).log_softmax(1)[torch.arange(2), y]
    torch.testing.assert_close(normalized_cross_entropy(z, y), expected)
    assert dlr_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([1])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    torch.manual_seed(0)
    z, y = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 5, 2, 3, 1])
    if name != "normalized-cross-entropy":  # whose scale carries no gradient
        assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, y), [z])
        return
    (found,) = torch.autograd.grad(normalized_cross_entropy(z, y).sum(), z)
    scale = z.detach().std(1, correction=0, keepdim=True)
    for i in range(6):
        step = 1e-6 * torch.eye(6, dtype=torch.float64)[i]
        up, down = (nn.functional.cross_entropy((z.detach() + s) / scale, y, reduction="none") for s in (step, -step))
        torch.testing.assert_close(found[:, i], (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


class Scaled(nn.Module):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.scale * self.inner(x)


@pytest.mark.parametrize(
    "attack", [lambda *a, **k: pgd(*a, step=0.02, steps=5, **k), lambda *a, **k: apgd(*a, steps=10, **k)]
)
@pytest.mark.parametrize("loss", ["normalized-cross-entropy", "margin", "dlr"])
def test_the_scale_of_the_logits_does_not_change_the_attack(conv, batch, attack, loss):
    x, _ = batch
    y = conv(x).argmax(-1)
    small, large = (attack(Scaled(conv.double(), s), x.double(), y, eps=0.05, loss=loss) for s in (1.0, 1024.0))
    torch.testing.assert_close(large, small, rtol=0, atol=1e-9)
    assert (small - x).abs().max() > 0.04


def test_large_logits_stop_the_cross_entropy_but_not_its_normalized_form(conv, batch):
    x, _ = batch
    y = conv(x).argmax(-1)
    loud = Scaled(conv, 1e5)

    def accuracy(loss):
        return (conv(pgd(loud, x, y, eps=0.1, step=0.02, steps=10, loss=loss)).argmax(-1) == y).float().mean()

    assert accuracy("cross-entropy") == 1
    assert accuracy("normalized-cross-entropy") < 0.5


def test_mean_logits_is_the_loss_of_the_vote(noisy_conv, batch):
    x, y = batch
    with prepare_for_attack(noisy_conv, x), sampling(noisy_conv, "fresh"):
        reset_noise(noisy_conv, 3)
        found = loss_gradient(noisy_conv, x, y, draws=6, goal=AttackGoal("margin", "mean-logits"))
        reset_noise(noisy_conv, 3)
        part = x.clone().requires_grad_()
        with sampling(noisy_conv, draws=6):
            mean = noisy_conv(part).mean(0)
        loss = margin_loss(mean, y)
        (expected,) = torch.autograd.grad(loss.sum(), part)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, expected)


class WeightNoise(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(30, 3)

    def forward(self, x):
        weight = self.linear.weight + 0.3 * torch.randn_like(self.linear.weight)
        return torch.tanh(nn.functional.linear(x, weight, self.linear.bias))


def test_mean_logits_of_foreign_randomness():
    model, x, y = WeightNoise(), torch.rand(4, 30), torch.tensor([0, 1, 2, 0])
    with prepare_for_attack(model, x):
        torch.manual_seed(1)
        found = loss_gradient(model, x, y, draws=5, goal=AttackGoal("margin", "mean-logits"))
        torch.manual_seed(1)
        part = x.clone().requires_grad_()
        loss = margin_loss(torch.stack([model(part) for _ in range(5)]).mean(0), y)
        (expected,) = torch.autograd.grad(loss.sum(), part)
    torch.testing.assert_close(found.gradient, expected)
    assert found.logits.shape == (5, 4, 3)


def test_the_objective_of_the_vote_finds_a_lower_vote(linear_batch):
    """With large noise in front of a saturating layer the mean loss and the loss of the mean differ."""
    torch.manual_seed(0)
    x, _ = linear_batch
    net = nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 2))
    nn.init.normal_(net[2].weight, std=4.0)
    add_noise(net, ["0"], init=1.0, example=x)
    with torch.no_grad(), sampling(net, draws=2000):
        y = net(x).mean(0).argmax(-1)

    def vote_margin(objective):
        reset_noise(net, 1)
        x_adv = pgd(net, x, y, eps=0.2, step=0.02, steps=20, draws=50, objective=objective)
        with torch.no_grad(), sampling(net, draws=4000):
            return margin_loss(net(x_adv).mean(0), y).mean().item()

    assert vote_margin("mean-logits") > vote_margin("mean-loss")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": "hinge"}, "loss is 'hinge', expected one of 'cross-entropy'"),
        ({"objective": "vote"}, "objective is 'vote'"),
    ],
)
def test_unknown_goals_are_explained(conv, batch, options, sentence):
    with pytest.raises(InputError, match=sentence):
        pgd(conv, *batch, eps=0.1, step=0.1, steps=1, **options)
