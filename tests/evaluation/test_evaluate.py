import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from noiseprop import add_noise, reset_noise, sampling
from noiseprop.attacks import fgsm, lbfgs, pgd
from noiseprop.corruptions import SEVERITIES, corrupt, corruption_seed
from noiseprop.data import Dataset
from noiseprop.errors import InputError
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.results import Measurement
from noiseprop.evaluation.scoring import derive_noise_key, iterate_chunks, score_states
from noiseprop.evaluation.serialization import format_evaluation
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS, SETTINGS, Settings
from noiseprop.evaluation.text_summary import format_summary
from noiseprop.models.mlp import mlp
from noiseprop.noise.stream import noise_of

suite = import_module("noiseprop.evaluation.evaluate")  # not the function of this name
CLASSES = tuple("abcde")
QUICK = Settings(attack_images=40, attack_draws=(1, 4), vote_draws=8, batch_size=64, pgd_steps=3, lbfgs_steps=3)


def striped(count=90, seed=0):
    """Images whose class is the stripe that is lit, under some noise; easy for a linear classifier."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    images = rng.integers(0, 120, (count, 1, 10, 10), dtype=np.uint8)
    for i, label in enumerate(labels):
        images[i, 0, 2 * label : 2 * label + 2] += 45
    return Dataset("stripes", torch.from_numpy(images), torch.from_numpy(labels), CLASSES)


def matched():
    """Return the linear classifier that sums each stripe."""
    model = mlp((100, 5))
    with torch.no_grad():
        model.fc1.bias.zero_()
        model.fc1.weight.zero_()
        for label in range(5):
            model.fc1.weight[label, 20 * label : 20 * label + 20] = 1
    return model


def noisy(sigma, **options):
    return add_noise(matched(), ["fc1"], init=sigma, example=torch.zeros(1, 1, 10, 10), **options)


def find(evaluation, condition, state, draws=0, severity=0):
    (found,) = [m for m in evaluation.measurements if m.key == (condition, state, draws, severity)]
    return found


@pytest.fixture(scope="module")
def full():
    return evaluate(noisy(2.0), striped(), settings=QUICK, surrogate=matched())


def test_every_condition_and_state_is_measured_once(full):
    expected = {("clean", s, 0, 0) for s in ("off", "one", "vote")}
    expected |= {(f"{a}-transfer", s, 0, 0) for a in ("fgsm", "lbfgs") for s in ("off", "one", "vote")}
    for attack in ("fgsm", "lbfgs", "pgd"):
        expected |= {(attack, "off", 0, 0)} | {(attack, s, k, 0) for s in ("one", "vote") for k in (1, 4)}
    expected |= {(c, s, 0, v) for c in CORRUPTIONS for v in SEVERITIES for s in ("off", "one", "vote")}
    assert {m.key for m in full.measurements} == expected
    assert len(full.measurements) == len(expected)
    assert full.noisy
    for m in full.measurements:
        attacked = m.condition in ("fgsm", "lbfgs", "pgd", "fgsm-transfer", "lbfgs-transfer")
        assert m.correct.size == (40 if attacked else 90)


def test_versions_and_threads_are_recorded(full):
    assert {"python", "noiseprop", "torch", "numba", "numpy", "scipy", "threads", "device"} <= set(full.versions)
    assert full.versions["torch"] == torch.__version__
    assert full.versions["threads"] == torch.get_num_threads()


def test_a_deterministic_network_has_one_state():
    evaluation = evaluate(matched(), striped(), settings=QUICK, surrogate=matched())
    assert {m.state for m in evaluation.measurements} == {"off"}
    assert not evaluation.noisy
    assert len(evaluation.measurements) == 1 + 3 + 2 + 20


def test_noise_that_is_silent_at_inference_makes_no_states():
    model = noisy(2.0, at_inference=False).train()
    evaluation = evaluate(model, striped(), settings=replace(QUICK, conditions=("clean",)))
    assert [m.key for m in evaluation.measurements] == [("clean", "off", 0, 0)]
    assert model.training


def test_outcomes_are_those_of_the_attacks_called_by_hand(full):
    dataset = striped()
    x, y = dataset.images[:40].float() / 255, dataset.labels[:40]
    model = matched()
    by_hand = {
        "fgsm": fgsm(model, x, y, eps=0.1),
        "pgd": pgd(model, x, y, eps=25 / 255, step=5 / 255, steps=3),
    }
    for name, x_adv in by_hand.items():
        correct = (model(x_adv).argmax(1) == y).numpy()
        np.testing.assert_array_equal(find(full, name, "off").correct, correct)
        assert 0 < correct.mean() < 1
    np.testing.assert_array_equal(find(full, "fgsm-transfer", "off").correct, find(full, "fgsm", "off").correct)


def test_corrupted_images_come_from_the_stated_seeds(full):
    dataset = striped()
    x, y, model = dataset.images.float() / 255, dataset.labels, matched()
    for kind in CORRUPTIONS:
        for severity in (1, 5):
            generator = torch.Generator().manual_seed(corruption_seed("stripes", kind, severity))
            corrupted = corrupt(x, kind, severity=severity, params="cifar10", generator=generator)
            correct = (model(corrupted).argmax(1) == y).numpy()
            np.testing.assert_array_equal(find(full, kind, "off", severity=severity).correct, correct)


def test_it_includes_the_sanity_checks(full):
    assert [f.name for f in full.findings] == [
        "noise",
        "convergence",
        "single step",
        "transfer",
        "large eps",
        "frozen noise",
    ]
    assert full.findings[0].outcome == "passed"
    assert all(f.sentence in format_summary(full) for f in full.findings)


def test_progress_counts_every_step():
    told = []
    evaluate(
        matched(),
        striped(),
        settings=replace(QUICK, conditions=("clean", "pgd")),
        progress=lambda done, total, name: told.append((done, total, name)),
    )
    assert [done for done, _, _ in told] == list(range(9))
    assert {total for _, total, _ in told} == {8}
    assert [name for _, _, name in told][:3] == ["clean", "pgd, noise off", "check noise"]


def test_the_attack_and_the_scoring_draw_from_different_keys(full):
    """Crafted and scored by hand with the stated keys, all images at once: an image's noise is its own."""
    dataset = striped()
    x, y = dataset.images[:40].float() / 255, dataset.labels[:40]
    model = noisy(2.0).eval()
    reset_noise(model, derive_noise_key(0, "pgd", 4, "attack"))
    x_adv = pgd(model, x, y, eps=25 / 255, step=5 / 255, steps=3, draws=4)
    reset_noise(model, derive_noise_key(0, "pgd", 4, "score"))
    with sampling(model, draws=8), torch.no_grad():
        votes = model(x_adv).argmax(-1)
    np.testing.assert_array_equal(find(full, "pgd", "one", 4).correct, (votes[0] == y).numpy())
    assert not np.array_equal(find(full, "pgd", "one", 4).correct, find(full, "pgd", "vote", 4).correct)


@pytest.fixture
def crafted(monkeypatch):
    """Record the adversarial images that the suite's attacks made, in their order."""
    made, craft = [], suite.craft_images
    monkeypatch.setattr(
        suite, "craft_images", lambda *args, **options: made.append(craft(*args, **options)) or made[-1]
    )
    return made


def test_attacks_use_the_stated_noise_key(crafted):
    """On a bent network, where other noise leads to other images."""
    dataset = striped()
    x, y = dataset.images[:40].float() / 255, dataset.labels[:40]
    torch.manual_seed(0)
    model = add_noise(mlp((100, 16, 5)), ["fc1"], init=2.0, example=x).eval()
    evaluate(model, dataset, settings=replace(QUICK, conditions=("pgd",), attack_draws=(4,), trust_images=8))
    by_hand = {}
    for purpose in ("attack", "score"):
        reset_noise(model, derive_noise_key(0, "pgd", 4, purpose))
        by_hand[purpose] = torch.zeros_like(x)
        for piece in (slice(0, 16), slice(16, 32), slice(32, 40)):
            with noise_of(model, piece.start):
                x_adv = pgd(model, x[piece], y[piece], eps=25 / 255, step=5 / 255, steps=3, draws=4)
            by_hand[purpose][piece] = x_adv
    with sampling(model, "off"):
        off = pgd(model, x, y, eps=25 / 255, step=5 / 255, steps=3)
    assert torch.equal(crafted[0], off)
    assert torch.equal(crafted[1], by_hand["attack"])
    assert len(torch.stack([off, *by_hand.values()]).flatten(1).unique(dim=0)) == 3


def test_transfers_are_crafted_on_the_surrogate(crafted):
    dataset = striped()
    x, y = dataset.images[:40].float() / 255, dataset.labels[:40]
    torch.manual_seed(0)
    model, other = noisy(2.0), mlp((100, 16, 5))
    settings = replace(QUICK, conditions=("fgsm-transfer", "lbfgs-transfer"), trust_images=8)
    evaluation = evaluate(model, dataset, settings=settings, surrogate=other)
    by_hand = [fgsm(other, x, y, eps=0.1), lbfgs(other, x, y, step=0.5, steps=3)]
    for name, made, x_adv in zip(settings.conditions, crafted, by_hand, strict=True):
        torch.testing.assert_close(made, x_adv, rtol=0, atol=1e-5)
        correct = (matched()(made).argmax(1) == y).numpy()
        np.testing.assert_array_equal(find(evaluation, name, "off").correct, correct)


def test_equal_calls_give_equal_evaluations_and_leave_the_model_unchanged():
    model = noisy(2.0)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    settings = replace(QUICK, conditions=("clean", "pgd", "impulse_noise"))
    first = format_evaluation(evaluate(model, striped(), settings=settings))
    torch.rand(3)
    model(torch.zeros(2, 1, 10, 10))
    random_state = torch.get_rng_state()
    for name, value in state.items():
        model.state_dict()[name].copy_(value)
    assert format_evaluation(evaluate(model, striped(), settings=settings)) == first
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    other = format_evaluation(evaluate(model, striped(), settings=replace(settings, seed=1)))
    changed = [
        (a["condition"], a["state"])
        for a, b in zip(json.loads(first)["measurements"], json.loads(other)["measurements"], strict=True)
        if a["correct"] != b["correct"]
    ]
    assert changed
    assert all(state != "off" for _, state in changed)  # the seed is the noise's alone; images stay as they were


def test_a_vote_is_the_most_frequent_class():
    """Three classes; sigma so large that one draw is nearly a coin, and many draws find the better class."""
    linear = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
    model = add_noise(linear, [""], init=2.0, example=torch.zeros(1, 1)).eval()
    x, y = torch.ones(2000, 1), torch.zeros(2000, dtype=torch.int64)
    outcomes = score_states(model, iterate_chunks(x, y), len(y), draws=200, rows=20000)
    assert outcomes["off"].all()
    # P(1 + 2a > max(2b, 2c)) for independent normals, by quadrature
    grid = np.linspace(-8, 8, 4001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    below = torch.special.ndtr(torch.tensor(grid + 0.5)).numpy()
    single = float((density * below**2).sum() * (grid[1] - grid[0]))
    assert outcomes["one"].mean() == pytest.approx(single, abs=4 * np.sqrt(0.25 / 2000))
    assert outcomes["vote"].mean() > 0.98


def test_ties_in_a_vote_go_to_the_surer_class():
    class Alternating(nn.Module):
        """Draw 0 narrowly says class 0, draw 1 firmly says class 1."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            logits = torch.zeros(len(x), 3)
            half = len(x) // 2
            logits[:half, 0], logits[half:, 1] = 0.5, 5.0
            return logits

    from noiseprop.evaluation import scoring as measure

    two_draws = Alternating()(torch.zeros(2, 1)).view(2, 1, 3)
    assert measure._majority_vote(two_draws).tolist() == [1]
    assert measure._majority_vote(two_draws.repeat(1, 4, 1)).tolist() == [1] * 4
    more = torch.cat([two_draws, two_draws[:1]])  # two narrow votes outnumber a firm one
    assert measure._majority_vote(more).tolist() == [0]


def test_corruptions_are_averaged_over_five_severities(full):
    figures = [find(full, "glass_blur", "vote", severity=s).accuracy for s in SEVERITIES]
    assert full.accuracy("glass_blur", state="vote") == pytest.approx(np.mean(figures))
    assert [m.severity for m in full.select("glass_blur")] == [1, 2, 3, 4, 5]
    assert full.accuracy("pgd") == find(full, "pgd", "one", 4).accuracy
    with pytest.raises(InputError, match="nothing was measured"):
        full.select("pgd", state="one", attack_draws=9)


def test_the_summary_shows_every_figure_with_its_interval(full):
    text = format_summary(full)
    lines = text.splitlines()
    assert lines[0].split() == ["accuracy", "noise", "off", "one", "draw", "vote", "of", "8"]
    pgd_line = next(line for line in lines if line.startswith("pgd, EOT-4"))
    m = find(full, "pgd", "vote", 4)
    assert f"{m.accuracy:.3f} [{m.interval.low:.3f}, {m.interval.high:.3f}]" in pgd_line
    assert "a single pass" in text
    assert sum(line.startswith(CORRUPTIONS) for line in lines) == 4


def test_the_summary_names_a_recipe_that_is_not_the_papers(full):
    told = "The network was trained by the fast recipe, not the paper's: 5 epochs."
    for recipe, said in (("fast", True), ("table1", False)):
        about = {"recipe": recipe, "epochs": 5}
        assert (told in format_summary(replace(full, about=about)).splitlines()) == said
    assert "recipe" not in format_summary(full)


def test_the_summary_doubts_an_unbounded_attack_that_is_weaker_than_a_bounded_one(full):
    def summarise(lbfgs, pgd):
        right = {"lbfgs": lbfgs, "pgd": pgd}
        kept = [m for m in full.measurements if m.condition not in right]
        kept += [Measurement(name, "one", 4, 0, np.arange(40) < count) for name, count in right.items()]
        return format_summary(replace(full, measurements=tuple(kept)))

    assert "doubtful: L-BFGS may change an image as much as it likes and still leaves 0.500, PGD in its" in summarise(
        20, 10
    )
    assert "0.250; its 3 steps of fixed length have not converged." in summarise(20, 10)
    assert "doubtful" not in summarise(10, 10)
    assert "doubtful" not in summarise(5, 10)


def test_settings_of_table_2():
    assert set(SETTINGS) == {"mnist", "mnist-5k", "cifar10", "tiny-imagenet"}
    mnist, cifar, tiny = SETTINGS["mnist"], SETTINGS["cifar10"], SETTINGS["tiny-imagenet"]
    assert (mnist.fgsm_eps, mnist.lbfgs_step, mnist.lbfgs_steps) == (0.1, 0.5, 10)
    assert (mnist.pgd_step, mnist.pgd_eps, mnist.pgd_steps) == (5 / 255, 25 / 255, 10)
    assert (cifar.fgsm_eps, cifar.lbfgs_step, cifar.lbfgs_steps) == (0.1, 0.05, 20)
    assert (cifar.pgd_step, cifar.pgd_eps, cifar.pgd_steps) == (2 / 255, 8 / 255, 5)
    assert (tiny.fgsm_eps, tiny.lbfgs_step, tiny.lbfgs_steps) == (2 / 255, 0.05, 10)
    assert (tiny.pgd_step, tiny.pgd_eps, tiny.pgd_steps) == (2 / 255, 5 / 255, 3)
    assert (mnist.corruption_params, cifar.corruption_params, tiny.corruption_params) == (
        "cifar10",
        "cifar10",
        "tiny-imagenet",
    )
    for settings in SETTINGS.values():
        assert settings.attack_images >= 1000
        assert settings.vote_draws == 32
        assert settings.attack_draws == (1, 20)
        assert settings.conditions == CONDITIONS


class Broken(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        logits = matched()(x)
        if self.how == "nan":
            return logits * float("nan")
        if self.how == "rows":
            return logits[:1]
        if self.how == "classes":
            return logits[:, :4]
        return (logits,)


@pytest.mark.parametrize(
    ("how", "says"),
    [("nan", "NaN"), ("rows", "expected logits"), ("classes", "5"), ("tuple", "tuple")],
)
def test_a_broken_model_is_one_clear_sentence(how, says):
    with pytest.raises(InputError, match=says) as caught:
        evaluate(Broken(how), striped(), settings=replace(QUICK, conditions=("clean",)))
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_one_clear_sentence():
    with pytest.raises(InputError, match="need a surrogate"):
        evaluate(matched(), striped(), settings=QUICK)
    with pytest.raises(InputError, match="noise at inference"):
        evaluate(matched(), striped(), settings=QUICK, surrogate=noisy(1.0))
    with pytest.raises(InputError, match="no settings are known for 'stripes'"):
        evaluate(matched(), striped())
    with pytest.raises(InputError, match="does not take images"):
        evaluate(mlp((784, 5)), striped(), settings=QUICK, surrogate=matched())
    with pytest.raises(InputError, match="no images"):
        evaluate(matched(), striped()[:0], settings=QUICK, surrogate=matched())


@pytest.mark.parametrize(
    "change",
    [
        {"conditions": ("fog",)},
        {"conditions": ()},
        {"conditions": ("clean", "clean")},
        {"pgd_eps": 0.0},
        {"pgd_steps": 0},
        {"vote_draws": 0},
        {"attack_draws": ()},
        {"attack_draws": (0,)},
        {"fgsm_eps": float("nan")},
        {"seed": -1},
        {"seed": 0.5},
        {"pgd_steps": 2.5},
        {"vote_draws": "8"},
        {"attack_images": True},
        {"fgsm_eps": None},
    ],
)
def test_settings_that_measure_nothing_raise_an_error(change):
    with pytest.raises(InputError):
        replace(QUICK, **change)
