"""Each check meets a model built to trip it and one that must not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from noiseprop import NeuronNoise, add_noise, sampling
from noiseprop.errors import InputError
from noiseprop.evaluation.sanity_checks import (
    CHECKS,
    CheckSubject,
    check_convergence,
    check_frozen,
    check_large_eps,
    check_noise,
    check_single_step,
    check_transfer,
    run_sanity_checks,
)
from noiseprop.evaluation.settings import Settings

SIDE = 6
SETTINGS = Settings(pgd_eps=0.1, pgd_step=0.02, pgd_steps=10, attack_draws=(1, 8), vote_draws=16, batch_size=512)


def margins(spread=0.3, count=60, seed=0):
    """Two classes of images: mean grey above or below 1/2 by up to `spread`."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    shift = (0.02 + (spread - 0.02) * torch.rand(count, generator=generator)) * (2 * y - 1)
    texture = 0.1 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    texture -= texture.mean((1, 2, 3), keepdim=True)
    return (0.5 + shift[:, None, None, None] + texture).clamp(0, 1), y


class Two(nn.Module):
    """Logits (-m, m) / 2 for a margin m(x) that a subclass gives: positive means class 1."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x):
        m = self.margin(x.flatten(1)) * self.scale
        return torch.stack([-m, m], 1) / 2


class Linear(Two):
    """Grey level less one half: every attack is optimal in one way or another, nothing is masked."""

    def margin(self, x):
        return x.mean(1) - 0.5


def noisy(model, sigma=0.5):
    return add_noise(model, [""], init=sigma, example=torch.zeros(1, 1, SIDE, SIDE)).eval()


def subject(model, settings=SETTINGS, surrogate=None, spread=0.3):
    return CheckSubject(model.eval(), *margins(spread), settings, surrogate)


# noise: dead, shared, frozen, foreign


class SideNoise(Two):
    """Passes the grey level through a noise layer together with a neuron that carries nothing but noise."""

    def __init__(self, sigma, scale=1.0):
        super().__init__(scale)
        self.noise = NeuronNoise((2,), init=sigma)
        self.noise.sigma.data[0] = 0

    def margin(self, x):
        level = x.mean(1)
        return self.mix(*self.noise(torch.stack([level, torch.zeros_like(level)], 1)).T)


class SharedNoise(SideNoise):
    """Uses the first image's noise for the whole batch, as several published layers do."""

    def mix(self, level, z):
        return level - 0.5 + z[:1]


class ForeignNoise(Linear):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, x):
        return super().forward(x) + torch.randn(1 if self.shared else len(x), 2)


class SameNoise(nn.Module):
    """Noise that differs from row to row, but not from pass to pass."""

    def __init__(self):
        super().__init__()
        self.inner = noisy(Linear(), 0.5)

    def forward(self, x):
        with sampling(self.inner, "frozen", key=3):
            return self.inner(x)


class OneDrawAPass(SameNoise):
    """Noise that differs from row to row and from pass to pass, but several draws of a pass are one."""

    passes = 0

    def forward(self, x):
        self.passes += 1
        with sampling(self.inner, "frozen", key=self.passes):
            return self.inner(x)


@pytest.mark.parametrize(
    ("model", "outcome", "says"),
    [
        (lambda: noisy(Linear(), 0.5), "passed", "live"),
        (lambda: noisy(Linear(), 1e-3), "passed", "live"),
        (lambda: noisy(Linear(), 0.0), "failed", "dead"),
        (lambda: SharedNoise(1.0), "failed", "shared across the batch"),
        (lambda: ForeignNoise(shared=True), "failed", "shared across the batch"),
        (lambda: ForeignNoise(shared=False), "failed", "without a noise layer of noiseprop"),
        (SameNoise, "failed", "same in every pass"),
        (OneDrawAPass, "failed", "draws within one pass are equal"),
        (Linear, "not applicable", "deterministic"),
    ],
)
def test_noise(model, outcome, says):
    finding = check_noise(subject(model()))
    assert (finding.name, finding.outcome) == ("noise", outcome)
    assert says in finding.sentence


# convergence


class OnePixelAtATime(Two):
    """Only the brightest pixel has a gradient (for class 1), so each step moves one pixel and the attack needs many."""

    def margin(self, x):
        return x.amax(1) - 0.5


class FlickeringGradient(SideNoise):
    """Grey level under a ripple of no height and huge slope, whose phase is noise: few gradients say little."""

    def mix(self, level, z):
        return level - 0.5 + 1e-4 * torch.sin(7e4 * level + z)


def test_convergence_when_more_steps_still_lower_it():
    x = 0.45 + 0.07 * torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    finding = check_convergence(CheckSubject(OnePixelAtATime(), x, torch.ones(40, dtype=torch.int64), SETTINGS))
    assert finding.outcome == "failed"
    assert finding.numbers["accuracy"] > finding.numbers["twice_the_steps"] + 0.2
    assert "not converged" in finding.sentence
    assert "twice_the_draws" not in finding.numbers


def test_convergence_when_more_draws_still_lower_it():
    settings = replace(SETTINGS, attack_draws=(1, 8), pgd_steps=40, pgd_step=0.005, pgd_eps=0.11)
    x, y = torch.full((40, 1, SIDE, SIDE), 0.6), torch.ones(40, dtype=torch.int64)
    finding = check_convergence(CheckSubject(FlickeringGradient(100.0), x, y, settings))
    assert finding.outcome == "failed"
    assert finding.numbers["accuracy"] > finding.numbers["twice_the_draws"] + 0.1


@pytest.mark.parametrize("model", [Linear, lambda: noisy(Linear(50.0), 3.0)])
def test_convergence_of_a_plain_gradient(model):
    finding = check_convergence(subject(model()))
    assert finding.outcome == "passed"
    assert 0.1 < finding.numbers["accuracy"] < 0.9


# a single step


class Ripples(Two):
    """Margin that rises and falls on the way to the border: small steps settle in a dip on this side of it."""

    def margin(self, x):
        m = x.mean(1) - 0.5
        return m + 0.02 * torch.sin(m * 2 * torch.pi / 0.05)


def test_single_step_is_stronger_where_small_steps_are_trapped():
    settings = replace(SETTINGS, pgd_eps=0.2, pgd_step=0.01, pgd_steps=20)
    finding = check_single_step(subject(Ripples(), settings, spread=0.25))
    assert finding.outcome == "failed"
    assert finding.numbers["many_steps"] - finding.numbers["one_step"] > 0.02
    assert "stronger than many" in finding.sentence


@pytest.mark.parametrize("model", [Linear, lambda: noisy(Linear(50.0), 3.0)])
def test_single_step_is_no_stronger_on_a_plain_gradient(model):
    finding = check_single_step(subject(model()))
    assert finding.outcome == "passed"
    assert 0.1 < finding.numbers["many_steps"] < 0.9


@pytest.mark.parametrize(("count", "images", "outcome"), [(16, 1, "passed"), (16, 2, "failed"), (100, 3, "failed")])
def test_one_image_more_or_less_is_no_finding(count, images, outcome, monkeypatch):
    left = {"single-step": 0.0, "many-steps": images / count}
    monkeypatch.setattr(CheckSubject, "accuracy_under", lambda self, attack, name: left[name])
    x, y = margins(count=count)
    assert check_single_step(CheckSubject(Linear().eval(), x, y, SETTINGS)).outcome == outcome


# transfer and large eps: saturated logits have no gradient


class Saturated(Linear):
    """Logits so large that the loss of a right image is exactly 0 in float32, and its gradient too."""

    def __init__(self):
        super().__init__(scale=1e5)


def test_transfer_beats_a_model_that_masks_its_gradient():
    finding = check_transfer(subject(Saturated(), surrogate=Linear().eval()))
    assert finding.outcome == "failed"
    assert finding.numbers["fgsm_white_box"] == 1.0
    assert finding.numbers["fgsm_transfer"] < 0.8
    assert "FGSM" in finding.sentence


@pytest.mark.parametrize("model", [lambda: Linear(50.0), lambda: noisy(Linear(50.0), 3.0)])
def test_transfer_does_not_beat_a_plain_gradient(model):
    finding = check_transfer(subject(model(), surrogate=Linear(50.0).eval()))
    assert finding.outcome == "passed"
    assert finding.numbers["fgsm_transfer"] < 0.9


def test_transfer_needs_a_surrogate():
    assert check_transfer(subject(Linear())).outcome == "not applicable"


def test_large_eps_leaves_a_masked_gradient_right():
    finding = check_large_eps(subject(Saturated()))
    assert finding.outcome == "failed"
    assert finding.numbers["accuracy"] == 1.0
    assert finding.numbers["chance"] == 0.5


@pytest.mark.parametrize("model", [Linear, lambda: noisy(Linear(50.0), 3.0)])
def test_large_eps_breaks_a_plain_gradient(model):
    finding = check_large_eps(subject(model()))
    assert finding.outcome == "passed"
    assert finding.numbers["accuracy"] < 0.1


# frozen noise


class HiddenSide(SideNoise):
    """Noise decides which way is out, so that an attack must guess; with noise off it is known."""

    def mix(self, level, z):
        return 0.05 - torch.where(z + 1e-2 > 0, 1.0, -1.0) * (level - 0.5)


class HelpfulNoise(SideNoise):
    """Noise that only ever widens the margin, whoever knows it."""

    def mix(self, level, z):
        return level - 0.5 + 0.2 * z.abs()


def greys(model):
    """Class 1 alone, near one half."""
    x = 0.5 + 0.04 * (torch.rand(400, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 0.5)
    return CheckSubject(model.eval(), x, torch.ones(400, dtype=torch.int64), SETTINGS)


def test_frozen_noise_that_was_only_hidden():
    finding = check_frozen(greys(HiddenSide(10.0, scale=100.0)))
    assert finding.outcome == "failed"
    assert finding.numbers["off"] == 0.0
    assert finding.numbers["frozen"] < 0.1
    assert finding.numbers["live"] == pytest.approx(0.5, abs=0.15)
    assert "once its draw is known" in finding.sentence


def test_frozen_noise_that_truly_helps():
    finding = check_frozen(greys(HelpfulNoise(1.0, scale=100.0)))
    assert finding.outcome == "passed"
    assert finding.numbers["off"] == 0.0
    assert finding.numbers["frozen"] == pytest.approx(finding.numbers["live"], abs=0.1)
    assert finding.numbers["live"] > 0.4


def test_frozen_noise_without_gain_or_without_noise():
    finding = check_frozen(subject(noisy(Linear(50.0), 0.01)))
    assert finding.outcome == "passed"
    assert "gains nothing" in finding.sentence
    assert check_frozen(subject(Linear())).outcome == "not applicable"


# where each check draws its line


@pytest.fixture
def stated(monkeypatch):
    """Accuracies by the name of the attack, in place of those that the model would have."""
    found = {}
    monkeypatch.setattr(CheckSubject, "accuracy_under", lambda self, attack, name, **options: found[name])
    monkeypatch.setattr(CheckSubject, "accuracy", lambda self, x_adv, **options: found["transferred"])
    return found


@pytest.mark.parametrize(
    ("check", "accuracies", "outcome"),
    [
        (check_convergence, {"convergence": 0.5, "convergence-steps": 0.479, "convergence-draws": 0.5}, "failed"),
        (check_convergence, {"convergence": 0.5, "convergence-steps": 0.5, "convergence-draws": 0.479}, "failed"),
        (check_convergence, {"convergence": 0.5, "convergence-steps": 0.481, "convergence-draws": 0.481}, "passed"),
        (check_convergence, {"convergence": 0.5, "convergence-steps": 0.6, "convergence-draws": 0.6}, "passed"),
        (check_single_step, {"single-step": 0.479, "many-steps": 0.5}, "failed"),
        (check_single_step, {"single-step": 0.481, "many-steps": 0.5}, "passed"),
        (check_transfer, {"fgsm-white": 0.5, "lbfgs-white": 0.3, "transferred": 0.479}, "failed"),
        (check_transfer, {"fgsm-white": 0.3, "lbfgs-white": 0.5, "transferred": 0.479}, "failed"),
        (check_transfer, {"fgsm-white": 0.5, "lbfgs-white": 0.5, "transferred": 0.481}, "passed"),
        (check_large_eps, {"large-eps": 38 / 60}, "failed"),  # Wilson's interval of 60 images begins at 0.507
        (check_large_eps, {"large-eps": 37 / 60}, "passed"),  # at 0.490, chance being 0.5
        (check_frozen, {"live": 0.5, "off": 0.4, "frozen": 0.449}, "failed"),  # less than half of the gain is left
        (check_frozen, {"live": 0.5, "off": 0.4, "frozen": 0.451}, "passed"),
        (check_frozen, {"live": 0.419, "off": 0.4, "frozen": 0.4}, "passed"),  # no gain to lose
    ],
)
def test_thresholds_of_the_checks(check, accuracies, outcome, stated):
    stated.update(accuracies)
    finding = check(subject(noisy(Linear()), surrogate=Linear().eval()))
    assert finding.outcome == outcome


# all together


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (lambda x: x[:0], lambda y: y[:0], "non-empty"),
        (lambda x: 2 * x, lambda y: y, r"expected \[0, 1\]"),
        (lambda x: x * float("nan"), lambda y: y, r"expected \[0, 1\]"),
        (lambda x: x, lambda y: y[1:], "one per image"),
        (lambda x: x, lambda y: y + 1, "labels lie in 1..2"),
    ],
)
def test_sanity_checks_require_a_batch(images, labels, says):
    x, y = margins()
    with pytest.raises(InputError, match=says):
        run_sanity_checks(Linear(), images(x), labels(y), settings=SETTINGS)


def test_sanity_checks_run_completely_and_leave_the_model_unchanged():
    model = noisy(Linear(50.0), 3.0).train()
    x, y = margins()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = run_sanity_checks(model, x, y, settings=SETTINGS, surrogate=Linear(50.0))
    assert [finding.name for finding in first] == [
        "noise",
        "convergence",
        "single step",
        "transfer",
        "large eps",
        "frozen noise",
    ]
    assert len(CHECKS) == 6
    assert all(finding.outcome == "passed" for finding in first)
    assert all(finding.sentence.endswith(".") and "\n" not in finding.sentence for finding in first)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert run_sanity_checks(model, x, y, settings=SETTINGS, surrogate=Linear(50.0)) == first
