"""Attacks on random networks (rule 3 of evaluation): the expected loss decides, never a lucky miss."""

import pytest
import torch
from torch import nn

from noiseprop.attacks import apgd, fgsm, pgd
from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.attacks.restarts import select_best_restart
from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.noise.sampling import sampling

ATTACKS = {
    "pgd": lambda model, x, y, **settings: pgd(model, x, y, eps=0.1, step=0.025, steps=20, **settings),
    "apgd": lambda model, x, y, **settings: apgd(model, x, y, eps=0.1, steps=20, **settings),
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.mark.parametrize("draws", [1, 20])
@pytest.mark.parametrize("restarts", [1, 3])
def test_reaches_the_exact_optimum_through_lucky_misses(
    noisy_linear, linear_batch, linear_optimum, attack, draws, restarts
):
    """With sigma 2 on the logits about every third pass misses on clean images already: whoever stops at one, loses."""
    x, y = linear_batch
    with torch.no_grad():
        misses = torch.stack([noisy_linear(x).argmax(1) != y for _ in range(200)]).float().mean(0)
    assert misses.min() > 0.2
    optimum = linear_optimum(x, y, 0.1)
    x_adv = attack(noisy_linear, x, y, draws=draws, restarts=restarts)
    torch.testing.assert_close(x_adv, optimum, rtol=0, atol=1e-6)
    torch.testing.assert_close(fgsm(noisy_linear, x, y, eps=0.1, draws=draws), optimum, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.* a noisy branch meets a noise-free one")
def test_an_average_over_draws_finds_the_slope_that_single_draws_hide():
    """Logit (0.3 + e) times the mean pixel: 38 % of single draws point down, the mean of 400 points up."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(30, 1)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, 0.3)

        def forward(self, x):
            logit = self.gate(x) * x.mean(1, keepdim=True)
            return torch.cat([torch.zeros_like(logit), logit], 1)

    x, y = torch.rand(100, 30, generator=torch.Generator().manual_seed(1)), torch.zeros(100, dtype=torch.int64)
    model = add_noise(Gated(), ["gate"], init=1.0, example=x, key=13)
    optimum = (x + 0.1).clamp(max=1)
    by_one, by_many = ((fgsm(model, x, y, eps=0.1, draws=draws) == optimum).all(1) for draws in (1, 400))
    assert 0.45 < by_one.float().mean() < 0.8
    assert by_many.all()


def test_of_several_results_the_higher_expected_loss_wins_by_fresh_draws(noisy_linear, linear_batch, linear_optimum):
    """Three candidates in a bad order; one of them is best, but single passes would rank them by luck."""
    x, y = linear_batch
    noisy_linear[1].noise.sigma.data.fill_(0.5)
    best = linear_optimum(x, y, 0.5)
    candidates = [x, best, linear_optimum(x, 1 - y, 0.5)]
    with prepare_for_attack(noisy_linear):
        found = select_best_restart(noisy_linear, y, iter(candidates), lambda start, _rows: start, draws=1, stop=False)
    assert torch.equal(found, best)


def test_stopping_when_broken_raises_an_error_where_a_miss_may_be_luck(noisy_linear, linear_batch, attack):
    with pytest.raises(InputError, match="a miss may be the luck of one draw"):
        attack(noisy_linear, *linear_batch, stop_when_broken=True)


@pytest.mark.parametrize("mode", [{"mode": "off"}, {"mode": "frozen", "key": 3}])
def test_stopping_when_broken_is_allowed_where_noise_is_off_or_frozen(noisy_linear, linear_batch, attack, mode):
    x, y = linear_batch
    with sampling(noisy_linear, **mode):
        full, short = (attack(noisy_linear, x, y, stop_when_broken=stop) for stop in (False, True))
        broken, still = (noisy_linear(v).argmax(1) != y for v in (full, short))
    assert broken.any()
    assert torch.equal(broken, still)
