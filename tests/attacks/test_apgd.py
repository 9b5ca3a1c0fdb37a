import sys

import pytest
import torch
import torchattacks
from torch.nn import functional

from noiseprop.attacks.apgd import apgd
from noiseprop.attacks.pgd import pgd
from noiseprop.attacks.restarts import start_points
from noiseprop.attacks.threat import ball
from noiseprop.errors import InputError


def loss(model, x, y):
    return functional.cross_entropy(model(x), y, reduction="none").detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_model_is_attacked_at_its_exact_optimum(linear, linear_batch, linear_optimum, dtype):
    x, y = linear_batch[0].to(dtype), linear_batch[1]
    x_adv = apgd(linear.to(dtype), x, y, eps=0.1, steps=10)
    torch.testing.assert_close(x_adv, linear_optimum(x, y, 0.1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("steps", [5, 20, 50, 100])
def test_equal_to_torchattacks_from_the_same_start(conv, batch, monkeypatch, steps):
    x, y = batch
    conv, x = conv.double(), x.double()
    reference = torchattacks.APGD(conv, eps=0.1, steps=steps)
    torch.manual_seed(8)
    t = 2 * torch.rand(x.shape) - 1  # torchattacks' start
    start = (x + 0.1 * t / t.flatten(1).abs().amax(1).view(-1, 1, 1, 1)).clamp(0, 1)
    torch.manual_seed(8)
    expected = reference.attack_single_run(x, y)[0]
    monkeypatch.setattr(sys.modules[apgd.__module__], "start_points", lambda *_, **__: iter([start]))
    x_adv = apgd(conv, x, y, eps=0.1, steps=steps)
    torch.testing.assert_close(x_adv, expected.detach(), atol=1e-6, rtol=0)


def test_reaches_a_higher_loss_than_pgd_of_as_many_steps(conv, batch):
    x, y = batch
    eps, steps = 0.1, 40
    by_pgd = pgd(conv, x, y, eps=eps, step=eps / 4, steps=steps, random_start=True)
    by_apgd = apgd(conv, x, y, eps=eps, steps=steps)
    assert loss(conv, by_apgd, y).mean() > loss(conv, by_pgd, y).mean()
    assert (by_apgd - x).abs().max() <= eps + 1e-7
    assert 0 <= by_apgd.min() <= by_apgd.max() <= 1


def test_restarts_keep_the_highest_loss_of_each_image(conv, batch):
    x, y = batch
    generator = torch.Generator().manual_seed(5)
    losses = torch.stack([loss(conv, apgd(conv, x, y, eps=0.1, steps=8, generator=generator), y) for _ in range(4)])
    assert len(set(losses.argmax(0).tolist())) > 1, "the test needs images whose best start is not the same"
    x_adv = apgd(conv, x, y, eps=0.1, steps=8, restarts=4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(loss(conv, x_adv, y), losses.amax(0))


@pytest.mark.parametrize("restarts", [1, 3])
def test_stopping_when_broken_breaks_at_least_the_same_images(conv, batch, restarts):
    x, _ = batch
    y = conv(x).argmax(-1)
    settings = {"eps": 0.02, "steps": 20, "restarts": restarts}
    full = apgd(conv, x, y, **settings, generator=torch.Generator().manual_seed(7))
    short = apgd(conv, x, y, **settings, generator=torch.Generator().manual_seed(7), stop_when_broken=True)
    broken, still = conv(full).argmax(-1) != y, conv(short).argmax(-1) != y
    assert 0 < broken.sum() < len(x), "the test needs broken images and robust ones"
    assert (still | ~broken).all()
    torch.testing.assert_close(short[~still], full[~still])
    assert (short - x).abs().max() <= 0.02 + 1e-7


def test_a_constant_loss_halves_the_steps_and_stays_in_the_ball(batch):
    """Nothing to climb: no iterate is better than the start, so the start comes back."""
    x, y = batch
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 5))
    torch.nn.init.zeros_(flat[1].weight)
    start = next(
        start_points(
            x, *ball(x, 0.1), eps=0.1, restarts=1, from_image=False, generator=torch.Generator().manual_seed(9)
        )
    )
    assert torch.equal(apgd(flat, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(9)), start)


@pytest.mark.parametrize("change", [{"eps": -1}, {"steps": 0}, {"restarts": 0}, {"draws": 0}])
def test_bad_settings_are_refused(conv, batch, change):
    with pytest.raises(InputError, match="expected a"):
        apgd(conv, *batch, **{"eps": 0.1, "steps": 2, **change})
