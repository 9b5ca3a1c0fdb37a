"""Test Eq. 7 against a loop over plain numbers."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from noiseprop import InputError, NoisepropError, SigmaAdam, add_noise, sigmas, weights
from noiseprop.noise import sigma_adam
from noiseprop.noise.kernels import dispatch as kernels


def eq_7(sigma, gradients, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8):
    """Apply the paper's five lines to one number; also count how often it crossed zero before its absolute value."""
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
    """Run every test on the compiled kernel and on plain torch operations."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "select_backend", lambda x: "torch")
    elif not kernels.has_numba:
        pytest.skip("numba is missing")
    return request.param


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("lr", [1e-3, 0.05])
def test_fifty_steps_with_some_across_zero(lr, capturable):
    rng = np.random.default_rng(0)
    start = np.concatenate([rng.normal(0, 0.02, 12), [0.0, 1e-9, -0.5]])
    gradients = rng.normal(0.3, 1.0, (50, 15)) * np.logspace(-6, 1, 15)
    sigma = [torch.tensor(part, requires_grad=True) for part in (start[:7].copy(), start[7:].copy())]
    optimizer = SigmaAdam(sigma, lr=lr, capturable=capturable)
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


@pytest.mark.parametrize("capturable", [False, True])
def test_a_sigma_without_gradient_stays_and_is_not_counted(capturable):
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = SigmaAdam([a, b], capturable=capturable)
    a.grad = torch.ones(1)
    optimizer.step()
    assert b.item() == 1.0
    b.grad = torch.ones(1)
    optimizer.step()
    assert b.item() == pytest.approx(1 - 1e-3)
    assert [float(optimizer.state[sigma]["step"]) for sigma in (a, b)] == [2.0, 1.0]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-60])  # float32 has no 1e-60
def test_without_eps_a_zero_gradient_moves_nothing_and_the_other_entries_follow_eq_7(eps, dtype, capturable):
    rng = np.random.default_rng(1)
    start, gradients = rng.uniform(0.1, 1, 41), rng.normal(size=(12, 41))
    gradients[:, [0, 20, 40]] = 0.0
    gradients[:5, 7] = 0.0  # moves from its first gradient on
    gradients[5:, 9] = 0.0  # is moved by its running mean afterwards
    sigma = torch.tensor(start, dtype=dtype, requires_grad=True)
    optimizer = SigmaAdam([sigma], lr=1e-2, eps=eps, capturable=capturable)
    for g in gradients:
        before = sigma.detach().clone()
        sigma.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
        assert torch.equal(sigma[[0, 20, 40]], before[[0, 20, 40]])
    moving = [i for i in range(41) if i not in (0, 7, 20, 40)]
    expected = [eq_7(start[i], gradients[:, i], lr=1e-2, eps=eps)[0] for i in moving]
    np.testing.assert_allclose(sigma.detach()[moving], expected, rtol=1e-12 if dtype == torch.float64 else 1e-5)
    h = v = 0.0
    late = start[7]
    for n, g in enumerate(gradients[:, 7], start=1):
        h, v = 0.9 * h + 0.1 * g, 0.999 * v + 0.001 * g * g
        late = abs(late - 1e-2 * (h / (1 - 0.9**n) / math.sqrt(v / (1 - 0.999**n)) if v else 0.0))
    assert sigma[7].item() == pytest.approx(late, rel=1e-12 if dtype == torch.float64 else 1e-5)


def test_without_eps_the_whole_step_is_done_and_stderr_stays_empty(path):
    """An exception in compiled code is printed as ignored, after which the other levels have not moved."""
    script = """
import torch
from noiseprop import SigmaAdam
from noiseprop.noise.kernels import dispatch
if PATH == "torch":
    dispatch.select_backend = lambda x: "torch"
for dtype in (torch.float32, torch.float64):
    levels = [torch.full((3,), 0.5, dtype=dtype) for _ in range(2)]
    levels[0].grad, levels[1].grad = (torch.tensor(g, dtype=dtype) for g in ([1.0, 0.0, -1.0], [2.0, 2.0, 0.0]))
    SigmaAdam(levels, lr=0.1, eps=0.0).step()
    print([[round(number, 6) for number in sigma.tolist()] for sigma in levels])
"""
    run = subprocess.run(
        [sys.executable, "-c", f"PATH = {path!r}\n{script}"], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stderr == ""
    assert run.stdout.split("\n")[:2] == ["[[0.4, 0.5, 0.6], [0.4, 0.4, 0.5]]"] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_of_nan_or_infinity_is_not_hidden(bad):
    sigma = torch.ones(2)
    sigma.grad = torch.tensor([bad, 1.0])
    SigmaAdam([sigma], eps=0.0).step()
    assert sigma[0].isnan()
    assert sigma[1].item() == pytest.approx(1 - 1e-3)


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


# step counts on the device -------------------------------------------------------------------------------------------


def test_counts_on_the_device_give_the_steps_of_counts_on_the_host():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(200, generator=generator)
    on_host, on_device = start.clone(), start.clone()
    optimizers = [SigmaAdam([on_host], lr=0.02), SigmaAdam([on_device], lr=torch.tensor(0.02), capturable=True)]
    for _ in range(30):
        on_host.grad = on_device.grad = torch.randn(200, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(on_device, on_host, rtol=1e-5, atol=1e-7)
    count = optimizers[1].state[on_device]["step"]
    assert isinstance(count, torch.Tensor)
    assert (count.dtype, count.item()) == (torch.float32, 30.0)
    assert optimizers[0].state[on_host]["step"] == 30  # a number


@pytest.mark.parametrize("capturable", [False, True])
def test_a_checkpoint_of_either_count_resumes_with_the_other(capturable):
    first, second = torch.ones(3), torch.ones(3)
    saved, resumed = SigmaAdam([first], capturable=capturable), SigmaAdam([second], capturable=not capturable)
    for sigma_gradient in (1.0, -0.5, 2.0):
        first.grad = torch.full((3,), sigma_gradient)
        saved.step()
    second.copy_(first)
    state = {"state": copy.deepcopy(saved.state_dict()["state"]), "param_groups": resumed.state_dict()["param_groups"]}
    resumed.load_state_dict(state)
    first.grad = second.grad = torch.full((3,), 0.3)
    saved.step()
    resumed.step()
    torch.testing.assert_close(second, first, rtol=1e-6, atol=0)
    assert float(resumed.state[second]["step"]) == 4.0
    assert isinstance(resumed.state[second]["step"], torch.Tensor) == (not capturable)


def scaled_training(capturable: bool, overflow_at: int | None) -> tuple[torch.Tensor, list[float], float]:
    """Take five steps under GradScaler; return sigma, its values after each step, and the last scale."""
    sigma = torch.tensor([0.5, -0.2, 0.0], requires_grad=True)
    optimizer = SigmaAdam([sigma], lr=0.05, capturable=capturable)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    values = []
    for number in range(5):
        optimizer.zero_grad()
        factor = torch.tensor([math.inf if number == overflow_at else 1.0, 2.0, -3.0])
        scaler.scale((sigma * factor).sum() * (1 + number)).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(sigma.detach().clone())
    assert float(optimizer.state[sigma]["step"]) == 5 - (overflow_at is not None)
    return sigma.detach(), values, scaler.get_scale()


@pytest.mark.parametrize("capturable", [False, True])
def test_grad_scaler_unscales_the_gradients(capturable):
    expected = [eq_7(s, [g * (1 + n) for n in range(5)], lr=0.05)[0] for s, g in ((0.5, 1), (-0.2, 2), (0.0, -3))]
    sigma, _, scale = scaled_training(capturable, overflow_at=None)
    np.testing.assert_allclose(sigma, expected, rtol=1e-5)
    assert scale == 2.0**10


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("overflow_at", [0, 2])
def test_grad_scaler_skips_a_step_with_an_overflow(overflow_at, capturable):
    gradients = [1 + number for number in range(5) if number != overflow_at]
    expected = [eq_7(s, [g * n for n in gradients], lr=0.05)[0] for s, g in ((0.5, 1), (-0.2, 2), (0.0, -3))]
    sigma, values, scale = scaled_training(capturable, overflow_at)
    np.testing.assert_allclose(sigma, expected, rtol=1e-5)
    before = values[overflow_at - 1] if overflow_at else torch.tensor([0.5, -0.2, 0.0])
    assert torch.equal(values[overflow_at], before)  # its signs included
    assert scale == 2.0**9


def test_grad_scaler_does_not_wait_for_counts_on_the_device(monkeypatch):
    sigma = torch.ones(3, requires_grad=True)
    optimizer = SigmaAdam([sigma], capturable=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(sigma.sum()).backward()

    def refuse(self):
        raise AssertionError("a step waits for the device")

    with monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
            patch.setattr(torch.Tensor, name, refuse)
        scaler.step(optimizer)
    assert sigma.tolist() == pytest.approx([1 - 1e-3] * 3)


def test_a_capture_with_counts_on_the_host_is_an_error(monkeypatch):
    sigma = torch.ones(3)
    optimizer = SigmaAdam([sigma])
    sigma.grad = torch.ones(3)
    optimizer.step()
    before = sigma.clone()
    monkeypatch.setattr(sigma_adam, "_is_captured", lambda sigma: True)
    with pytest.raises(NoisepropError, match="construct SigmaAdam with capturable=True"):
        optimizer.step()
    assert torch.equal(sigma, before)
    assert optimizer.state[sigma]["step"] == 1


def test_a_capture_of_the_first_step_is_an_error(monkeypatch):
    sigma, other = torch.ones(3), torch.ones(2)
    optimizer = SigmaAdam([sigma, other], capturable=True)
    sigma.grad = torch.ones(3)
    with monkeypatch.context() as patch:
        patch.setattr(sigma_adam, "_is_captured", lambda sigma: True)
        with pytest.raises(NoisepropError, match="at least one step with all gradients before the capture"):
            optimizer.step()
        assert torch.equal(sigma, torch.ones(3))
    optimizer.step()
    monkeypatch.setattr(sigma_adam, "_is_captured", lambda sigma: True)
    optimizer.step()  # its state exists
    other.grad = torch.ones(2)
    with pytest.raises(NoisepropError, match="captures the first SigmaAdam"):
        optimizer.step()
    assert optimizer.state[sigma]["step"].item() == 2.0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_advances_the_bias_correction():
    start, gradients = [0.5, -0.2, 0.01], [1.0, -0.5, 2.0, 0.3, 0.7]
    sigma = torch.tensor(start, device="cuda")
    sigma.grad = torch.zeros_like(sigma)
    optimizer = SigmaAdam([sigma], lr=0.05, capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sigma.grad.fill_(gradients[0])
        optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for gradient in gradients[1:]:
        sigma.grad.fill_(gradient)
        graph.replay()
    expected = [eq_7(s, gradients, lr=0.05)[0] for s in start]
    np.testing.assert_allclose(sigma.cpu(), expected, rtol=1e-5)


def test_a_tensor_for_lr_requires_counts_on_the_device():
    with pytest.raises(InputError, match="pass a number, or capturable=True"):
        SigmaAdam([torch.ones(1)], lr=torch.tensor(0.1))
    with pytest.raises(InputError, match="SigmaAdam got lr=-1"):
        SigmaAdam([{"params": [torch.ones(1)], "lr": -1.0}])


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
