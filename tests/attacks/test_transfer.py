from functools import partial

import pytest
import torch
from torch import nn

from noiseprop.attacks import apgd, fgsm, pgd, transfer
from noiseprop.errors import InputError


@pytest.fixture
def other():
    torch.manual_seed(20)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 5))


def test_crafts_on_the_surrogate_and_scores_on_the_model(conv, other, batch):
    x, y = batch
    found = transfer(conv, x, y, surrogate=other, attack=partial(fgsm, eps=0.2))
    assert torch.equal(found.x_adv, fgsm(other, x, y, eps=0.2))
    assert not torch.equal(found.x_adv, fgsm(conv, x, y, eps=0.2))
    assert torch.equal(found.logits, conv(found.x_adv).detach()[None])


def test_scores_a_random_model_over_its_draws(noisy_conv, other, batch):
    found = transfer(noisy_conv, *batch, surrogate=other, attack=partial(fgsm, eps=0.2), draws=7)
    assert found.logits.shape == (7, 16, 5)
    assert len(found.logits.flatten(1).unique(dim=0)) == 7


def test_no_gradient_of_the_model_is_needed(conv, other, batch):
    class Rounded(nn.Module):
        def forward(self, x):
            return conv(x).detach().round()

    found = transfer(Rounded(), *batch, surrogate=other, attack=partial(fgsm, eps=0.2))
    assert torch.equal(found.logits[0], conv(found.x_adv).detach().round())


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("bind", [partial, lambda attack, **options: lambda *call: attack(*call, **options)])
def test_stopping_when_broken_raises_an_error_however_it_is_bound(conv, other, batch, attack, bind):
    options = {"eps": 0.1, "steps": 2, "stop_when_broken": True} | ({"step": 0.1} if attack is pgd else {})
    with pytest.raises(InputError, match="transfer: the attack has stop_when_broken set"):
        transfer(conv, *batch, surrogate=other, attack=bind(attack, **options))
    assert attack(other, *batch, **options).shape == batch[0].shape  # elsewhere it is allowed again


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda _model, x, _y: x[:-1], r"returned torch\.float32 of shape \(15, 2, 8, 8\)"),
        (lambda _model, x, _y: x.double(), r"returned torch\.float64"),
        (lambda _model, x, _y: x + 1, r"expected \[0, 1\]"),
    ],
)
def test_an_attack_that_leaves_the_threat_model_raises_an_error(conv, other, batch, attack, message):
    with pytest.raises(InputError, match=message):
        transfer(conv, *batch, surrogate=other, attack=attack)


def test_draws_below_one_raise_an_error(conv, other, batch):
    with pytest.raises(InputError, match="draws is 0"):
        transfer(conv, *batch, surrogate=other, attack=partial(fgsm, eps=0.2), draws=0)
