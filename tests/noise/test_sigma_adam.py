"""Eq. 7 against a loop over plain numbers."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from noiseprop import InputError, SigmaAdam, add_noise, sigmas, weights
from noiseprop.noise.kernels import dispatch as kernels


def eq_7(sigma, gradients, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8):
    """The paper's five lines for one number; also how often it crossed zero before its absolute value was taken."""
    h = v = 0.0
    crossed = 0
    for n, g in enumerate(gradients, start=1):
        h = b1 * h + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        h_hat, v_hat = h / (1 - b1**n), v / (1 - b2**n)
        moved = sigma - lr * h_hat / math.sqrt(v_hat + eps)
        crossed += int(moved * sigma < 0)
        sigma = abs(moved)
    return sigma, crossed


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def path(request, monkeypatch):
    """Every test runs on both paths."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "select_backend", lambda x: "torch")
    elif not kernels.has_numba:
        pytest.skip("numba is missing")


@pytest.mark.parametrize("lr", [1e-3, 0.05])
def test_fifty_steps_with_some_across_zero(lr):
    rng = np.random.default_rng(0)
    start = np.concatenate([rng.normal(0, 0.02, 12), [0.0, 1e-9, -0.5]])
    gradients = rng.normal(0.3, 1.0, (50, 15)) * np.logspace(-6, 1, 15)
    sigma = [torch.tensor(part, requires_grad=True) for part in (start[:7].copy(), start[7:].copy())]
    optimizer = SigmaAdam(sigma, lr=lr)
    for g in gradients:
        for s, part in zip(sigma, (g[:7], g[7:]), strict=True):
            s.grad = torch.tensor(part)
        optimizer.step()
    expected, crossed = zip(*(eq_7(s, g, lr=lr) for s, g in zip(start, gradients.T, strict=True)), strict=True)
    np.testing.assert_allclose(torch.cat(sigma).detach().numpy(), expected, rtol=1e-10, atol=1e-14)
    assert sum(n > 1 for n in crossed) > 6  # numbers that crossed again and again


def test_eps_inside_the_root_floors_small_gradients():
    sigma = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = SigmaAdam([sigma], lr=1e-3)
    sigma.grad = torch.tensor([1e-6], dtype=torch.float64)
    optimizer.step()
    assert 1 - sigma.item() == pytest.approx(1e-3 * 1e-6 / math.sqrt(1e-12 + 1e-8))  # torch's Adam would move by 1e-3


def test_a_real_optimizer_groups_closure_and_state_dict():
    a, b = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = SigmaAdam([{"params": [a]}, {"params": [b], "lr": 0.1}])
    loss = optimizer.step(lambda: ((a.sum() - b.sum()) * 1.0).backward() or 5.0)
    assert loss == 5.0
    assert (1 - a).abs().max() < 2e-3 < 0.05 < (b - 1).abs().min()

    def run(optimizer, sigma, steps):
        for step in range(steps):
            sigma.grad = torch.full_like(sigma, step - 1.5)
            optimizer.step()

    first, second = torch.ones(3), torch.ones(3)
    one = SigmaAdam([first])
    run(one, first, 3)
    second.copy_(first)
    other = SigmaAdam([second])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    run(one, first, 4)
    run(other, second, 4)
    assert torch.equal(first, second)


def test_a_schedule_moves_the_rate():
    sigma = torch.ones(1, requires_grad=True)
    optimizer = SigmaAdam([sigma], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    sigma.grad = torch.ones(1)
    optimizer.step()
    schedule.step()
    moved = sigma.item()
    optimizer.step()
    assert sigma.item() == moved == pytest.approx(0.9)


def test_a_sigma_without_gradient_stays_and_is_not_counted():
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = SigmaAdam([a, b])
    a.grad = torch.ones(1)
    optimizer.step()
    assert b.item() == 1.0
    b.grad = torch.ones(1)
    optimizer.step()
    assert b.item() == pytest.approx(1 - 1e-3)


def test_a_state_that_does_not_fit_is_an_error_not_a_crash():
    small, large = torch.ones(2, requires_grad=True), torch.ones(5000, requires_grad=True)
    donor, optimizer = SigmaAdam([small]), SigmaAdam([large])
    small.grad, large.grad = torch.ones(2), torch.ones(5000)
    donor.step()
    optimizer.load_state_dict(donor.state_dict())
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-9}, {"lr": float("nan")}])
def test_bad_settings_are_named(bad):
    with pytest.raises(InputError, match="SigmaAdam got"):
        SigmaAdam([torch.ones(1)], **bad)


def test_sigmas_and_weights_split_the_parameters():
    def build(learn):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        return add_noise(model, ["0", "1"], learn=learn, mean=True, example=torch.zeros(1, 3))

    model = build(True)
    levels, rest = sigmas(model), weights(model)
    assert [tuple(s.shape) for s in levels] == [(4,), (2,)]
    assert {id(p) for p in levels} | {id(p) for p in rest} == {id(p) for p in model.parameters()}
    assert len(levels) + len(rest) == len(list(model.parameters()))
    assert any(p is model[0].noise.mu for p in rest)
    assert sigmas(build(False)) == []
