"""Check the common features of all baselines: sites, sharing, draws, removal."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noiseprop
from noiseprop.errors import InputError
from noiseprop.noise import baselines
from noiseprop.noise.attach.add_noise import remove_noise
from noiseprop.noise.baselines.base import AdditiveNoise

Place = Callable[..., nn.Module]

PRESETS: dict[str, Place] = {
    "learn2perturb": baselines.learn2perturb,
    "rse": baselines.rse,
    "pni, activations": partial(baselines.pni, on="activations"),
    "pni, weights": baselines.pni,
    "variational dropout": baselines.variational_dropout,
    "neftune": partial(baselines.neftune, where="conv"),  # of anything that returns (B, *neurons)
}


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    conv, other = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, groups=2)
    return nn.Sequential(conv, nn.ReLU(), other, nn.Flatten(), nn.Linear(36, 5)).train()


X = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).expand(6, 2, 8, 8)


@pytest.fixture(params=PRESETS.values(), ids=PRESETS.keys())
def place(request: pytest.FixtureRequest) -> Place:
    return partial(request.param, example=X[:1])


def test_every_sample_has_its_own_noise_and_every_pass_another(place: Place) -> None:
    net = place(convolutional())
    assert noiseprop.is_noisy(net)
    one, two = net(X), net(X)
    assert not torch.equal(one, two)
    for i in range(1, 6):
        assert not torch.equal(one[0], one[i])


def test_shared_noise_is_one_for_all_samples_and_changes_with_the_pass(place: Place) -> None:
    net = place(convolutional(), shared=True)
    one, two = net(X), net(X)
    torch.testing.assert_close(one, one[:1].expand_as(one))  # equal up to the order of a sum in a convolution
    assert not torch.allclose(one, two)
    assert "shared=True" in str(net)


@pytest.mark.parametrize("shared", [False, True])
def test_draws_in_one_pass_equal_as_many_passes(place: Place, shared: bool) -> None:
    net = place(convolutional(), shared=shared)
    x = torch.rand(5, 2, 8, 8)
    noiseprop.reset_noise(net, 7)
    apart = torch.stack([net(x) for _ in range(3)])
    noiseprop.reset_noise(net, 7)
    with noiseprop.sampling(net, draws=3):
        together = net(x)
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(apart[0], apart[1])


def test_silenced_and_removed_it_leaves_the_model_as_it_was(place: Place) -> None:
    net = convolutional()
    before, plain = copy.deepcopy(net.state_dict()), net(X)
    place(net)
    with noiseprop.sampling(net, "off"):
        torch.testing.assert_close(net(X), plain, rtol=0, atol=0)
    copied = copy.deepcopy(net)
    assert torch.equal(copied(X), net(X))
    remove_noise(net)
    assert not noiseprop.is_noisy(net)
    assert torch.equal(net(X), plain)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_seed_decides(place: Place) -> None:
    one, same, other = (place(convolutional(), key=key) for key in (3, 3, 4))
    y = one(X)
    assert torch.equal(same(X), y)
    assert not torch.allclose(other(X), y)


@pytest.mark.parametrize("shared", [False, True])
def test_it_takes_bfloat16_and_returns_it(place: Place, shared: bool) -> None:
    net = place(convolutional(), shared=shared)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(X)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_likelihood_ratio_is_refused_where_it_would_be_ignored() -> None:
    net = baselines.pni(nn.Linear(2, 2), [""], example=torch.zeros(1, 2))
    net.noise.estimator = "likelihood-ratio"
    with pytest.raises(InputError, match="pathwise"):
        net(torch.zeros(1, 2))


def test_shared_noise_is_the_same_in_every_process_of_a_batch() -> None:
    def eps(first: int, shared: bool) -> Tensor:
        layer = AdditiveNoise(3, shared=shared)
        return layer.noisy(torch.zeros(2, 3), torch.tensor([1, 0, 0, 0, first]), 1)

    assert torch.equal(eps(0, shared=True), eps(8, shared=True))
    assert not torch.equal(eps(0, shared=False), eps(8, shared=False))


@pytest.mark.parametrize("name", ["learn2perturb", "pni, activations", "pni, weights", "variational dropout"])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_a_finite_difference(name: str, shared: bool) -> None:
    """With the key frozen, the loss is an ordinary function of the levels and the weights."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.rand(5, 3, dtype=torch.float64)
    PRESETS[name](net, example=x[:1], shared=shared)

    def loss(*_: Tensor) -> Tensor:
        with noiseprop.sampling(net, "frozen", key=2):
            return net(x).square().sum()

    levels = noiseprop.sigmas(net)
    if name == "pni, activations":
        levels = levels[-1:]  # an earlier alpha also moves later standard deviations, through which no gradient goes
    assert all(level.dtype == torch.float64 for level in levels)
    assert torch.autograd.gradcheck(loss, levels, atol=1e-4)
    if not name.startswith("pni"):
        assert torch.autograd.gradcheck(loss, [net[0].weight, net[2].bias], atol=1e-4)
