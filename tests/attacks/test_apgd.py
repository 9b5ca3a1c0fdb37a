import sys

import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from noiseprop.attacks.apgd import apgd
from noiseprop.attacks.eot import expected_loss, loss_gradient, prepare_for_attack
from noiseprop.attacks.pgd import pgd
from noiseprop.attacks.restarts import sample_start_points, select_best_restart
from noiseprop.attacks.validation import linf_ball
from noiseprop.errors import InputError
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise


def loss(model, x, y):
    return functional.cross_entropy(model(x), y, reduction="none").detach()


def start_at(start, monkeypatch):
    monkeypatch.setattr(sys.modules[apgd.__module__], "sample_start_points", lambda *_, **__: iter([start]))


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
    start_at(start, monkeypatch)
    x_adv = apgd(conv, x, y, eps=0.1, steps=steps)
    torch.testing.assert_close(x_adv, expected.detach(), atol=1e-6, rtol=0)


def by_the_paper(model, x, y, start, *, eps, draws, random):
    """Croce and Hein's algorithm 1 for 100 steps, an image at a time, with every loss kept.

    Their EOT averages each gradient over `draws`; on a random network 32 fresh draws decide which is best.
    """
    images, p = range(len(x)), [0.0, 0.22]  # the checkpoints, as shares of all steps
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    checkpoints = [round(100 * share) for share in p]

    def project(i, z):
        return torch.minimum(torch.maximum(z, x[i] - eps), x[i] + eps).clamp(0, 1)

    def measured(points):
        found = loss_gradient(model, torch.stack(points), y, draws=draws)
        return found.loss.tolist(), list(found.gradient)

    def better_by_fresh_draws(points, others):
        first, second = (expected_loss(model, torch.stack(some), y, draws=32)[0].tolist() for some in (points, others))
        return [a > b for a, b in zip(first, second, strict=True)], list(map(max, first, second))

    now = before = list(start)
    f, g = measured(now)
    history, best, best_f, best_g = [f], list(now), list(f), list(g)
    eta, reduced, rose_best, halvings = [2 * eps] * len(x), [True] * len(x), [False] * len(x), 0
    for k in range(1, 101):
        z = [project(i, now[i] + eta[i] * g[i].sign()) for i in images]
        if k > 1:
            z = [project(i, now[i] + 0.75 * (z[i] - now[i]) + 0.25 * (now[i] - before[i])) for i in images]
        before, now = now, z
        f, g = measured(now)
        history.append(f)
        for i in images:
            if f[i] > best_f[i]:
                best[i], best_f[i], best_g[i], rose_best[i] = now[i], f[i], g[i], True
        if k in checkpoints:
            if random:
                wins, best_f = better_by_fresh_draws(now, best)
                best = [now[i] if wins[i] else best[i] for i in images]
                best_g = [g[i] if wins[i] else best_g[i] for i in images]
            since = checkpoints[checkpoints.index(k) - 1]
            now = list(now)
            for i in images:
                rises = sum(history[j][i] > history[j - 1][i] for j in range(since + 1, k + 1))
                if halve := rises <= 0.75 * (k - since) or not (reduced[i] or rose_best[i]):
                    eta[i], now[i], g[i] = eta[i] / 2, best[i], best_g[i]
                    halvings += 1
                reduced[i], rose_best[i] = halve, False
    if random:
        wins, _ = better_by_fresh_draws(now, best)
        best = [now[i] if wins[i] else best[i] for i in images]
    return torch.stack(best), halvings


@pytest.mark.parametrize(("mode", "draws"), [("off", 1), ("fresh", 1), ("fresh", 4)])
def test_equal_to_an_independent_reading_of_the_paper_with_eot(noisy_conv, batch, monkeypatch, mode, draws):
    x, y, model = batch[0][:6].double(), batch[1][:6], noisy_conv.double()
    start = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(8)).double() - 0.05).clamp(0, 1)
    start_at(start, monkeypatch)
    with sampling(model, mode):
        reset_noise(model, 5)
        x_adv = apgd(model, x, y, eps=0.1, steps=100, draws=draws)
        reset_noise(model, 5)
        with prepare_for_attack(model):
            expected, halvings = by_the_paper(model, x, y, start, eps=0.1, draws=draws, random=mode == "fresh")
    assert halvings > 10
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


class Regions(nn.Module):
    """Class 0 with a loss of log 3 up to 0.6, and beyond it narrowly class 1, with a lower loss of class 0."""

    def forward(self, x):
        v = x.flatten(1)
        right = torch.cat([0.01 - 0.001 * v, 0 * v, 0 * v], 1)
        wrong = torch.cat([2 + 0 * v, 2.1 + 0 * v, 0 * v - 5], 1)
        return torch.where(v > 0.6, wrong, right)


def test_a_broken_image_is_not_given_up_for_one_of_higher_loss(monkeypatch):
    """At a checkpoint, of which 5 steps have 5, nor for another start."""
    model, x, y = Regions(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    start_at(x, monkeypatch)
    assert loss(model, x, y) > loss(model, x + 0.25, y)
    assert (apgd(model, x, y, eps=0.25, steps=5) < 0.6).all()  # the highest loss
    assert torch.equal(apgd(model, x, y, eps=0.25, steps=5, stop_when_broken=True), x + 0.25)
    with prepare_for_attack(model):
        for stop, best in ((False, x), (True, x + 0.25)):
            starts = iter([x, x + 0.25])
            assert torch.equal(
                select_best_restart(model, y, starts, lambda start, _rows: start, draws=1, stop=stop), best
            )


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
        sample_start_points(
            x, *linf_ball(x, 0.1), eps=0.1, restarts=1, from_image=False, generator=torch.Generator().manual_seed(9)
        )
    )
    assert torch.equal(apgd(flat, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(9)), start)


@pytest.mark.parametrize("change", [{"eps": -1}, {"steps": 0}, {"restarts": 0}, {"draws": 0}])
def test_bad_settings_raise_an_error(conv, batch, change):
    with pytest.raises(InputError, match="expected a"):
        apgd(conv, *batch, **{"eps": 0.1, "steps": 2, **change})
