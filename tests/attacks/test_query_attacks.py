import pytest
import torch
from torch import nn

from noiseprop import sampling
from noiseprop.attacks import spsa, square
from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.attacks.square import _get_side, compute_margin
from noiseprop.errors import InputError


def as_images(x):
    return x.view(len(x), 1, 5, 6)


def mean_margin(model, x, y, draws=2000):
    with torch.no_grad(), sampling(model, draws=draws):
        z = model(x).mean(0)
    return (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).mean().item()


def test_square_finds_the_optimum_of_a_linear_network(linear, linear_batch, linear_optimum):
    x, y = linear_batch
    found = square(linear, as_images(x), y, eps=0.1, queries=2500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.flatten(1), linear_optimum(x, y, 0.1), rtol=0, atol=1e-7)


def test_spsa_finds_the_optimum_of_a_linear_network(linear, linear_batch, linear_optimum):
    x, y = linear_batch
    x = 0.2 + 0.6 * x  # the ball is not cut
    found = spsa(linear, x, y, eps=0.1, step=0.05, steps=4, directions=300, generator=torch.Generator().manual_seed(0))
    optimum = linear_optimum(x, y, 0.1)
    rows = linear[1].weight.detach()
    gain = ((rows[1 - y] - rows[y]) * (found - x)).sum(1) / ((rows[1 - y] - rows[y]) * (optimum - x)).sum(1)
    assert (gain > 0.93).all()


@pytest.mark.parametrize(("attack", "share"), [("square", 0.4), ("square, aware", 0.6), ("spsa", 0.6)])
def test_query_attacks_beat_the_noise_of_a_random_network(noisy_linear, linear_batch, linear_optimum, attack, share):
    x, y = linear_batch
    noisy_linear[1].noise.sigma.data.fill_(0.2)  # the margin moves by 0.3 within the ball
    images, rng = as_images(x), torch.Generator().manual_seed(0)
    if attack == "spsa":
        found = spsa(noisy_linear, images, y, eps=0.1, step=0.05, steps=4, directions=200, width=0.1, generator=rng)
    else:
        aware = attack == "square, aware"
        found = square(noisy_linear, images, y, eps=0.1, queries=300, draws=50, noise_aware=aware, generator=rng)
    clean, best = (mean_margin(noisy_linear, z, y) for z in (images, as_images(linear_optimum(x, y, 0.1))))
    assert mean_margin(noisy_linear, found, y) < clean - share * (clean - best)


def test_an_aware_attacker_is_not_fooled_by_a_lucky_incumbent(noisy_linear, linear_batch):
    x, y = linear_batch
    noisy_linear[1].noise.sigma.data.fill_(0.2)
    images = as_images(x)
    unaware, aware = (
        square(
            noisy_linear, images, y, eps=0.1, queries=600, noise_aware=flag, generator=torch.Generator().manual_seed(1)
        )
        for flag in (False, True)
    )
    assert mean_margin(noisy_linear, aware, y) < mean_margin(noisy_linear, unaware, y)


def test_margin_is_that_of_the_mean_logits(noisy_linear, linear_batch):
    x, y = linear_batch
    with prepare_for_attack(noisy_linear), torch.no_grad():
        found = compute_margin(noisy_linear, x, y, draws=5000)
        with sampling(noisy_linear, "off"):
            exact = compute_margin(noisy_linear, x, y)
    torch.testing.assert_close(found, exact, rtol=0, atol=5 * 2 * 2**0.5 / 5000**0.5)


def test_squares_shrink_by_the_schedule_of_the_authors():
    assert [_get_side(0.8, q, 10_000, torch.Size([32, 32])) for q in (0, 11, 51, 201, 9999)] == [29, 20, 14, 10, 1]
    assert _get_side(1.0, 0, 10, torch.Size([5, 9])) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_stay_in_the_ball_and_in_the_pixels(conv, batch, dtype):
    x, y = batch
    x, conv = x.to(dtype), conv.to(dtype)
    for found in (
        square(conv, x, y, eps=0.1, queries=20),
        spsa(conv, x, y, eps=0.1, step=0.05, steps=3, directions=4),
    ):
        assert found.dtype == dtype
        assert found.min() >= 0
        assert found.max() <= 1
        limit = 0.1 if dtype == torch.bfloat16 else 0.1 + 1e-7
        assert (found.double() - x.double()).abs().max() <= limit
        assert not torch.equal(found, x)


def test_equal_generators_give_equal_images(noisy_conv, batch):
    from noiseprop import reset_noise

    def run(attack, **options):
        reset_noise(noisy_conv, 5)
        return attack(noisy_conv, *batch, eps=0.1, generator=torch.Generator().manual_seed(2), **options)

    for attack, options in ((square, {"queries": 10}), (spsa, {"step": 0.05, "steps": 2, "directions": 3})):
        assert torch.equal(run(attack, **options), run(attack, **options))


class Rounded(nn.Module):
    """Logits without any gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (self.inner(x) * 1000).round() / 1000


def test_networks_without_gradients_are_attacked(linear, linear_batch):
    x, y = linear_batch
    model = Rounded(linear)
    found = square(model, as_images(x), y, eps=0.1, queries=200)
    with prepare_for_attack(model), torch.no_grad():
        before, after = compute_margin(model, as_images(x), y), compute_margin(model, found, y)
    assert (after < before).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x, y: square(m, x.flatten(1), y, eps=0.1), r"expected \(B, C, H, W\)"),
        (lambda m, x, y: square(m, x, y, eps=0.1, initial_share=0), "expected a share of pixels"),
        (lambda m, x, y: square(m, x, y, eps=0.1, queries=0), "queries is 0"),
        (lambda m, x, y: spsa(m, x, y, eps=0.1, step=0.1, steps=1, width=0), "width is 0"),
        (lambda m, x, y: spsa(m, 255 * x, y, eps=0.1, step=0.1, steps=1), "divide 8-bit pixels by 255"),
    ],
)
def test_bad_arguments_are_explained(conv, batch, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(conv, *batch)
