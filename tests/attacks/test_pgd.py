import foolbox
import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from noiseprop.attacks.fgsm import fgsm
from noiseprop.attacks.pgd import pgd
from noiseprop.errors import InputError

SETTINGS = {"eps": 0.1, "step": 0.03, "steps": 10}


def loss(model, x, y):
    return functional.cross_entropy(model(x), y, reduction="none").detach()


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_model_is_attacked_at_its_exact_optimum(linear, linear_batch, linear_optimum, dtype, random_start):
    x, y = linear_batch[0].to(dtype), linear_batch[1]
    x_adv = pgd(linear.to(dtype), x, y, **SETTINGS, random_start=random_start)
    torch.testing.assert_close(x_adv, linear_optimum(x, y, SETTINGS["eps"]), atol=1e-7, rtol=0)


def test_equal_to_torchattacks(conv, batch):
    x, y = batch
    expected = torchattacks.PGD(conv, eps=0.1, alpha=0.03, steps=10, random_start=False)(x, y)
    torch.testing.assert_close(pgd(conv, x, y, **SETTINGS), expected, atol=1e-6, rtol=0)


def test_equal_to_foolbox(conv, batch):
    x, y = batch
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.03, steps=10, random_start=False)
    _, expected, _ = attack(foolbox.PyTorchModel(conv, bounds=(0, 1)), x, y, epsilons=0.1)
    torch.testing.assert_close(pgd(conv, x, y, **SETTINGS), expected, atol=1e-6, rtol=0)


def test_one_step_of_eps_is_fgsm(conv, batch):
    x_adv = pgd(conv, *batch, eps=0.1, step=0.1, steps=1)
    assert torch.equal(x_adv, fgsm(conv, *batch, eps=0.1))


def test_stays_in_the_ball_and_in_the_pixels_range(conv, batch):
    x, y = batch
    x_adv = pgd(conv, x, y, **SETTINGS, random_start=True)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv - x).abs().max() <= SETTINGS["eps"] + 1e-7


def test_restarts_keep_the_highest_loss_of_each_image(conv, batch):
    x, y = batch
    generator = torch.Generator().manual_seed(5)
    starts = [pgd(conv, x, y, **SETTINGS)]
    starts += [pgd(conv, x, y, **SETTINGS, random_start=True, generator=generator) for _ in range(3)]
    losses = torch.stack([loss(conv, start, y) for start in starts])
    assert len(set(losses.argmax(0).tolist())) > 1, "the test needs images whose best start is not the same"
    x_adv = pgd(conv, x, y, **SETTINGS, restarts=4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(loss(conv, x_adv, y), losses.amax(0))


def test_a_generator_decides_the_start_and_moves_on(conv, batch):
    generator = torch.Generator().manual_seed(6)
    first, second = (pgd(conv, *batch, **SETTINGS, random_start=True, generator=generator) for _ in range(2))
    again = pgd(conv, *batch, **SETTINGS, random_start=True, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_random_starts_without_a_generator_follow_torchs_seed_and_do_not_move_it(conv, batch):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(pgd(conv, *batch, **SETTINGS, random_start=True))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


TRIAL = 16  # images of the trial that finds no randomness: four passes on four images


class Counting(nn.Module):
    """Counts the images that pass through a network."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.images = inner, 0

    def forward(self, x):
        self.images += len(x)
        return self.inner(x)


@pytest.mark.parametrize("restarts", [1, 3])
def test_stopping_when_broken_gives_the_same_verdicts_from_fewer_passes(conv, batch, restarts):
    x, _ = batch
    y = conv(x).argmax(-1)  # all correct at first
    eps, step = 0.02, 0.004
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    full, short = Counting(conv), Counting(conv)
    settings = {"eps": eps, "step": step, "steps": 12, "restarts": restarts}
    by_full = pgd(full, x, y, **settings, generator=generators[0])
    by_short = pgd(short, x, y, **settings, generator=generators[1], stop_when_broken=True)
    broken = conv(by_full).argmax(-1) != y
    assert 0 < broken.sum() < len(x), "the test needs broken images and robust ones"
    still = conv(by_short).argmax(-1) != y
    assert torch.equal(still, broken)
    assert short.images - TRIAL < 0.8 * full.images
    assert (by_short - x).abs().max() <= eps + 1e-7


def test_stopping_returns_images_that_are_broken_already_as_they_are(conv, batch):
    x, _ = batch
    wrong = (conv(x).argmax(-1) + 1) % 5
    counting = Counting(conv)
    assert torch.equal(pgd(counting, x, wrong, **SETTINGS, stop_when_broken=True), x)
    assert counting.images == len(x) + TRIAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1}, "eps is -1, expected"),
        ({"eps": float("nan")}, "eps is nan, expected"),
        ({"step": -0.1}, r"step is -0\.1, expected"),
        ({"steps": 0}, "steps is 0, expected a whole number"),
        ({"steps": 2.5}, r"steps is 2\.5, expected a whole number"),
        ({"restarts": 0}, "restarts is 0, expected a whole number"),
        ({"draws": 0}, "draws is 0, expected a whole number"),
    ],
)
def test_bad_settings_raise_an_error(conv, batch, change, message):
    with pytest.raises(InputError, match=message):
        pgd(conv, *batch, **{**SETTINGS, **change})
