import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noiseprop
from noiseprop.errors import InputError
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.objectives import (
    AdversarialSigma,
    EntropyBonus,
    FixedPower,
    Floor,
    Objective,
    SquareRootBonus,
    WeightCovarianceAlignment,
)


def levels(*values: list[float]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in values]


def make_noisy_net(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    noiseprop.add_noise(net, where=["0", "2"], example=torch.zeros(1, 4), init=0.5, **options)
    return net


def compute_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(net(x), y)


def collect_gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in net.named_parameters()}


# interface ------------------------------------------------------------------------------------------------------


def test_the_base_is_plain_backpropagation_and_moves_nothing() -> None:
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    plain, ours = make_noisy_net(), make_noisy_net()
    (compute_loss(plain, x, y) + compute_loss(plain, x, y)).backward()
    objective = Objective()
    objective.start_epoch(1)
    objective.backward(compute_loss(ours, x, y), compute_loss(ours, x, y))
    objective.project()
    for name, expected in collect_gradients(plain).items():
        assert torch.equal(collect_gradients(ours)[name], expected), name


def test_backward_adds_the_terms_gradient_to_the_losses() -> None:
    (sigma,) = levels([0.5, 2.0])
    objective = EntropyBonus([sigma], weight=0.3)
    objective.backward((sigma**2).sum(), (3 * sigma).sum())
    expected = 2 * sigma.detach() + 3 - 0.3 / (2 * sigma.detach())
    torch.testing.assert_close(sigma.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [lambda p: Floor(p, 0.1), FixedPower, lambda p: EntropyBonus(p, 1), SquareRootBonus])
def test_no_levels_is_an_error(make) -> None:
    with pytest.raises(InputError, match="add_noise"):
        make(noiseprop.sigmas(nn.Linear(2, 2)))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_settings_must_be_above_zero(bad: float) -> None:
    p = levels([1.0])
    for make in (
        lambda: Floor(p, bad),
        lambda: FixedPower(p, bad),
        lambda: EntropyBonus(p, bad),
        lambda: SquareRootBonus(p, bad),
        lambda: SquareRootBonus(p, 1.0, bad),
        lambda: WeightCovarianceAlignment(NeuronNoise(2), nn.Linear(2, 2), bad),
    ):
        with pytest.raises(InputError, match="above 0"):
            make()


# floor --------------------------------------------------------------------------------------------------------------


def test_floor_moves_only_what_is_below_and_keeps_signs() -> None:
    sigma, other = levels([0.05, -0.05, 0.3, -0.3], [0.0, 0.1])
    Floor([sigma, other], 0.1).project()
    assert sigma.tolist() == [0.1, -0.1, 0.3, -0.3]
    assert other.tolist() == [0.1, 0.1]


def test_floor_is_the_nearest_allowed_point() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    moved = start.clone()
    Floor([moved], 0.7).project()
    allowed = torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    allowed = torch.where(allowed.abs() < 0.7, 0.7 * allowed.sign(), allowed)
    assert (moved.abs() >= 0.7).all()
    assert (moved - start).norm() <= (allowed - start).norm(dim=1).min()


# fixed power --------------------------------------------------------------------------------------------------------


def test_power_stays_through_training_while_its_distribution_moves() -> None:
    net = make_noisy_net()
    levels_ = noiseprop.sigmas(net)
    objective = FixedPower(levels_)
    assert objective.power == pytest.approx(9 * 0.25, rel=1e-6)
    optimizer, sigma_optimizer = torch.optim.Adam(noiseprop.weights(net)), noiseprop.SigmaAdam(levels_, lr=0.05)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    for _ in range(20):
        for o in (optimizer, sigma_optimizer):
            o.zero_grad()
        objective.backward(compute_loss(net, x, y))
        optimizer.step()
        sigma_optimizer.step()
        objective.project()
        assert sum(float((s.detach().double() ** 2).sum()) for s in levels_) == pytest.approx(2.25, rel=1e-6)
    assert float(torch.cat([s.detach() for s in levels_]).std()) > 0.05


def test_power_is_kept_by_scaling_which_is_the_nearest_point_of_the_sphere() -> None:
    a, b = levels([3.0, -4.0], [12.0])
    objective = FixedPower([a, b], power=1.0)
    start = torch.cat([a, b]).detach().clone()
    objective.project()
    moved = torch.cat([a, b]).detach()
    torch.testing.assert_close(moved, start / 13, rtol=1e-15, atol=0)
    sphere = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sphere = sphere / sphere.norm(dim=1, keepdim=True)
    distances = (sphere - start).norm(dim=1)
    assert (moved - start).norm() <= distances.min()
    assert distances.min() < (moved - start).norm() * 1.001  # the sample reaches its neighbourhood


def test_power_of_no_noise_is_an_error() -> None:
    with pytest.raises(InputError, match="power"):
        FixedPower(levels([0.0, 0.0]))


# bonuses ------------------------------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_normal_distribution() -> None:
    p = levels([0.5, -2.0], [3.0])
    entropy = torch.distributions.Normal(0.0, torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)).entropy().mean()
    torch.testing.assert_close(EntropyBonus(p, 0.7).term(), -0.7 * entropy, rtol=1e-12, atol=0)


def test_gradient_of_entropy() -> None:
    p = levels([0.5, -2.0], [3.0])
    bonus = EntropyBonus(p, 0.7)
    bonus.term().backward()
    for sigma in p:
        torch.testing.assert_close(sigma.grad, -0.7 / (3 * sigma.detach()), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda *_: bonus.term(), p)


def test_entropy_at_zero_is_an_error() -> None:
    with pytest.raises(InputError, match="0"):
        EntropyBonus(levels([1.0], [0.0]), 0.1)


def test_value_and_gradient_of_the_square_root_bonus() -> None:
    p = levels([0.25, -4.0], [9.0])
    bonus = SquareRootBonus(p, weight=0.6)
    bonus.start_epoch(3)  # tau = 1 + 1/2 + 1/3 = 11/6
    assert bonus.term().item() == pytest.approx(-0.6 * 6 / 11 * (0.5 + 2 + 3), rel=1e-12)
    bonus.term().backward()
    for sigma in p:
        expected = -0.6 * 6 / 11 * 0.5 * sigma.detach().abs() ** -0.5 * sigma.detach().sign()
        torch.testing.assert_close(sigma.grad, expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda *_: bonus.term(), p)


def test_the_square_root_bonus_clips_and_counts_epochs_from_one() -> None:
    p = levels([0.001, 0.5])
    bonus = SquareRootBonus(p)
    bonus.project()
    assert p[0].tolist() == [0.01, 0.5]
    with pytest.raises(InputError, match="from 1"):
        bonus.start_epoch(0)


@pytest.mark.parametrize("shape", [(4,), (1,), (2, 2)])
def test_alignment_is_the_log_variance_of_the_logits(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    noise, readout = NeuronNoise(shape).double(), nn.Linear(4, 3).double()
    noise.sigma.data = torch.rand(shape, dtype=torch.float64) - 0.5
    wca = WeightCovarianceAlignment(noise, readout, weight=0.4)
    covariance = torch.diag((noise.sigma.flatten() ** 2).expand(4))
    expected = -0.4 * sum(torch.log(w @ covariance @ w) for w in readout.weight)
    torch.testing.assert_close(wca.term(), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda *_: wca.term(), (noise.sigma, readout.weight))


def test_alignment_agrees_with_the_sampled_variance_of_the_logits() -> None:
    torch.manual_seed(0)
    noise, readout = NeuronNoise(4, init="normal"), nn.Linear(4, 3)
    with torch.no_grad():
        variances = readout(noise(torch.zeros(200_000, 4))).var(0)
    expected = -variances.log().sum()
    assert WeightCovarianceAlignment(noise, readout, weight=1.0).term().item() == pytest.approx(
        float(expected), abs=0.03
    )


def test_alignment_needs_the_noise_before_the_readout() -> None:
    with pytest.raises(InputError, match="4 inputs"):
        WeightCovarianceAlignment(NeuronNoise(3), nn.Linear(4, 2), 1.0)


# adversarial only ---------------------------------------------------------------------------------------------------


def test_sigma_learns_from_the_adversarial_loss_only() -> None:
    x, z, y = torch.randn(8, 4), torch.randn(8, 4), torch.randint(3, (8,))
    both, adversarial, ours = make_noisy_net(mean=True), make_noisy_net(mean=True), make_noisy_net(mean=True)
    (0.5 * compute_loss(both, x, y) + 0.5 * compute_loss(both, z, y)).backward()
    compute_loss(adversarial, x, y)  # advances the noise by the same pass
    (0.5 * compute_loss(adversarial, z, y)).backward()
    AdversarialSigma(ours).backward(0.5 * compute_loss(ours, x, y), 0.5 * compute_loss(ours, z, y))
    for name, gradient in collect_gradients(ours).items():
        expected = collect_gradients(adversarial if name.endswith("sigma") else both)[name]
        assert gradient is not None
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_sigma_on_the_adversarial_loss_needs_one() -> None:
    net = make_noisy_net()
    with pytest.raises(InputError, match="adversarial"):
        AdversarialSigma(net).backward(compute_loss(net, torch.randn(2, 4), torch.tensor([0, 1])))
    with pytest.raises(InputError, match="add_noise"):
        AdversarialSigma(nn.Linear(2, 2))


# effect on training -------------------------------------------------------------------------------------------------


def train_mean_sigma(make_objective) -> float:
    """Return the mean sigma after training a regression in which noise is only harmful."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), NeuronNoise(8, init=0.5), nn.Linear(8, 1))
    x = torch.randn(64, 2)
    objective = make_objective(net)
    optimizer = torch.optim.Adam(noiseprop.weights(net), 3e-2)
    sigma_optimizer = noiseprop.SigmaAdam(noiseprop.sigmas(net), 3e-2)
    for _ in range(80):
        optimizer.zero_grad()
        sigma_optimizer.zero_grad()
        objective.backward(functional.mse_loss(net(x), x[:, :1] - x[:, 1:]))
        optimizer.step()
        sigma_optimizer.step()
        objective.project()
    return float(net[1].sigma.detach().mean())


def test_objectives_keep_noise_that_the_plain_loss_removes() -> None:
    plain = train_mean_sigma(lambda net: Objective())
    assert plain < 0.1
    assert train_mean_sigma(lambda net: Floor(noiseprop.sigmas(net), 0.2)) >= 0.2 - 1e-6
    assert train_mean_sigma(lambda net: FixedPower(noiseprop.sigmas(net))) > 0.2
    assert train_mean_sigma(lambda net: EntropyBonus(noiseprop.sigmas(net), 1.0)) > 3 * plain
    assert train_mean_sigma(lambda net: SquareRootBonus(noiseprop.sigmas(net), 0.1)) > 3 * plain
    assert train_mean_sigma(lambda net: WeightCovarianceAlignment(net[1], net[2], 1.0)) > 3 * plain
