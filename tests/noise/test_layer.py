"""One noise layer by itself: its shape, and what a cast or a move of the model leaves of it."""

import copy

import pytest
import torch
from torch import nn

from noiseprop import InputError, NeuronNoise, SigmaAdam, add_noise, sigmas

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return add_noise(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), ["0", "2"], mean=True, example=X)


CASTS = {
    "to bfloat16": (lambda net: net.to(torch.bfloat16), torch.bfloat16, torch.float32),
    "to float16": (lambda net: net.to(torch.float16), torch.float16, torch.float32),
    "half": (lambda net: net.half(), torch.float16, torch.float32),
    "type": (lambda net: net.type(torch.bfloat16), torch.bfloat16, torch.float32),
    "double": (lambda net: net.double(), torch.float64, torch.float64),
    "double and back": (lambda net: net.double().bfloat16(), torch.bfloat16, torch.float32),
    "type float64": (lambda net: net.type(torch.float64), torch.float64, torch.float64),
}


@pytest.mark.parametrize("cast", CASTS)
def test_sigma_and_mu_stay_wide_when_the_model_is_cast(cast):
    function, dtype, wide = CASTS[cast]
    net = network()
    with torch.no_grad():
        net[0].noise.sigma.fill_(1.001)  # which bfloat16 would round to 1
    plain = copy.deepcopy(net)
    function(net)
    y = net(X.to(dtype))
    assert y.dtype == net[0].weight.dtype == dtype
    y.float().sum().backward()
    for layer in (net[0].noise, net[2].noise):
        for parameter in (layer.sigma, layer.mu):
            assert parameter.dtype == parameter.grad.dtype == wide
    assert torch.equal(net[0].noise.sigma, plain[0].noise.sigma.to(wide))
    assert net[0].noise.key.dtype == torch.int64
    torch.testing.assert_close(y.float(), plain(X), rtol=0.05, atol=0.05)


def test_a_move_and_a_cast_at_once():
    net = network().to("meta", torch.bfloat16)
    assert net[0].weight.dtype == torch.bfloat16
    assert {(p.device.type, p.dtype) for p in sigmas(net)} == {("meta", torch.float32)}
    assert net[0].noise.key.is_meta
    assert {p.device.type for p in net.to_empty(device="cpu").parameters()} == {"cpu"}
    assert net[0].noise.key.dtype == torch.int64


@pytest.mark.parametrize("cast", ["to bfloat16", "half", "double"])
def test_sigma_adam_goes_on_after_a_cast_in_the_middle_of_training(cast):
    function, _, wide = CASTS[cast]
    net, reference = network(), network()
    optimizers = [SigmaAdam(sigmas(model), lr=0.01) for model in (net, reference)]
    for step in range(6):
        if step == 3:
            function(net)
        for model, optimizer in zip((net, reference), optimizers, strict=True):
            for number, sigma in enumerate(sigmas(model)):
                sigma.grad = torch.full_like(sigma, 0.1 * step - 0.2 + number)
            optimizer.step()
    for ours, theirs in zip(sigmas(net), sigmas(reference), strict=True):
        assert ours.dtype == wide
        torch.testing.assert_close(ours, theirs.to(wide))
        assert not torch.isclose(theirs, torch.ones(())).any()
    assert all(state["v"].dtype == wide for state in optimizers[0].state.values())


def test_fixed_noise_stays_wide_too():
    layer = NeuronNoise(3, init=1.001, learn=False).to(torch.bfloat16)
    assert layer.sigma.dtype == torch.float32
    assert torch.equal(layer.sigma, torch.full((3,), 1.001))


@pytest.mark.parametrize("shape", [(-5,), -1, 2.5, (3, 0.5), "channel", None, (3, None)])
def test_a_shape_that_is_none_is_named(shape):
    with pytest.raises(InputError, match=r"NeuronNoise got the shape .*whole numbers such as"):
        NeuronNoise(shape)


@pytest.mark.parametrize(("shape", "size"), [(3, (3,)), ((), ()), ([2, 3], (2, 3)), (torch.zeros(2, 4).shape, (2, 4))])
def test_shapes(shape, size):
    assert NeuronNoise(shape).sigma.shape == size


@pytest.mark.parametrize("init", [float("nan"), float("-inf"), 1e308, -(10**400), "uniform", None, [1.0]])
def test_a_start_that_float32_does_not_hold_is_named(init):
    with pytest.raises(InputError, match=r"NeuronNoise got init=.*pass a finite number, or 'normal'"):
        NeuronNoise(3, init=init)
