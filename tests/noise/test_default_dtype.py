"""Check that torch's default dtype changes neither sigma, mu, the noise nor the optimizer's state."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from noiseprop import NeuronNoise, SigmaAdam, add_noise, gaussian_noise, load_noise, noise_layers, save_noise, sigmas
from noiseprop.noise import baselines, objectives
from noiseprop.noise.kernels import dispatch

DTYPES = [torch.bfloat16, torch.float16, torch.float64]
X = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_network() -> nn.Sequential:
    """Return a network in float32 under any default dtype."""
    torch.manual_seed(0)
    options = {"dtype": torch.float32}
    conv, other = nn.Conv2d(2, 4, 3, padding=1, **options), nn.Conv2d(4, 4, 3, stride=2, groups=2, **options)
    return nn.Sequential(conv, nn.ReLU(), other, nn.Flatten(), nn.Linear(36, 5, **options))


def add_deferred(net: nn.Module) -> nn.Module:
    add_noise(net, "conv", init=0.1, mean=True)
    net(X)  # its first batch
    return net


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "constant": lambda net: add_noise(net, init=0.1, mean=True, example=X[:1]),
    "normal": lambda net: add_noise(net, init="normal", example=X[:1]),
    "fixed": lambda net: add_noise(net, init=0.1, learn=False, example=X[:1]),
    "channel": lambda net: add_noise(net, init=0.1, granularity="channel", example=X[:1]),
    "layer": lambda net: add_noise(net, init=0.1, granularity="layer", example=X[:1]),
    "deferred": add_deferred,
    "learn2perturb": partial(baselines.learn2perturb, init=0.1, example=X[:1]),
    "rse": partial(baselines.rse, example=X[:1]),
    "pni, activations": partial(baselines.pni, on="activations", example=X[:1]),
    "pni, weights": partial(baselines.pni, example=X[:1]),
    "variational dropout": partial(baselines.variational_dropout, example=X[:1]),
    "neftune": partial(baselines.neftune, where="conv", example=X[:1]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_levels_and_outputs_are_those_of_float32(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    expected = WAYS[way](make_network())
    torch.manual_seed(3)
    with default_dtype(dtype):
        net = WAYS[way](make_network())
        for layer in noise_layers(net).values():
            assert layer.sigma.dtype == torch.float32
            assert layer.mu is None or layer.mu.dtype == torch.float32
            assert layer.key.dtype == torch.int64
        y = net(X)
    for ours, theirs in zip(noise_layers(net).values(), noise_layers(expected).values(), strict=True):
        assert torch.equal(ours.sigma, theirs.sigma)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected(X))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_layer_is_exact(dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        learned, fixed = NeuronNoise((3,), init=0.1, mean=True), NeuronNoise((3,), init=0.1, learn=False)
        torch.manual_seed(0)
        normal = NeuronNoise((1000,), init="normal")
    assert torch.equal(learned.sigma, torch.full((3,), 0.1))
    assert torch.equal(fixed.sigma, torch.full((3,), 0.1))
    assert learned.mu is not None
    assert torch.equal(learned.mu, torch.zeros(3))
    torch.manual_seed(0)
    assert torch.equal(normal.sigma, NeuronNoise((1000,), init="normal").sigma)
    assert normal.sigma.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_the_noise_and_its_gradient_are_those_of_float32(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "numba" and not dispatch.has_numba:
        pytest.skip("numba is missing")
    monkeypatch.setattr(dispatch, "select_backend", lambda x: backend)

    def run() -> tuple[Tensor, ...]:
        sigma = torch.full((1, 8), 0.3, dtype=torch.float32, requires_grad=True)
        y = gaussian_noise(X, sigma, mu=0.1, key=torch.tensor([5, 1]))
        return y, gaussian_noise(X, 0.1, key=torch.tensor([5])), *torch.autograd.grad(y.square().sum(), sigma)

    expected = run()
    with default_dtype(dtype):
        found = run()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("backend", "capturable"), list(itertools.product(["numba", "torch"], [False, True])))
def test_the_optimizer_steps_as_in_float32(
    backend: str, capturable: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "numba" and not dispatch.has_numba:
        pytest.skip("numba is missing")
    monkeypatch.setattr(dispatch, "select_backend", lambda x: backend)

    def train() -> tuple[list[Tensor], SigmaAdam]:
        net = WAYS["constant"](make_network())
        optimizer = SigmaAdam(sigmas(net), lr=0.01, capturable=capturable)
        for _ in range(4):
            optimizer.zero_grad()
            net(X).square().mean().backward()
            optimizer.step()
        return sigmas(net), optimizer

    expected, _ = train()
    with default_dtype(dtype):
        found, optimizer = train()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    for state in optimizer.state.values():
        assert state["h"].dtype == state["v"].dtype == torch.float32
        assert float(state["step"]) == 4.0
        assert not capturable or state["step"].dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_objectives_and_files_keep_the_levels(dtype: torch.dtype, tmp_path) -> None:
    def run() -> tuple[list[Tensor], list[Tensor]]:
        net = WAYS["normal"](make_network())
        terms = [
            objectives.EntropyBonus(sigmas(net), 0.3).term(),
            objectives.SquareRootBonus(sigmas(net), 0.3).term(),
        ]
        objectives.FixedPower(sigmas(net), 2.0).project()
        objectives.Floor(sigmas(net), 0.1).project()
        save_noise(net, tmp_path / "noise.safetensors")
        other = load_noise(make_network(), tmp_path / "noise.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(sigmas(net), sigmas(other), strict=True))
        return sigmas(net), terms

    torch.manual_seed(1)
    expected = run()
    torch.manual_seed(1)
    with default_dtype(dtype):
        found = run()
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32
