"""torch.func: what each transform computes on a noisy model equals the same noise written out by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import noiseprop
from noiseprop.errors import InputError

X = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)
TARGET = torch.linspace(0, 1, 15, dtype=torch.float64).view(5, 3)
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # where torch makes one eps, and the kernel the other


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return noiseprop.add_noise(plain, "linear", mean=True, init=0.5, example=X)


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def loss(net: nn.Module, values: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
    return (functional_call(net, values, (x,)) - target).square().sum()


def eager_gradients(net: nn.Module) -> dict[str, Tensor]:
    (net(X) - TARGET).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_grad_equals_backward_and_counts_one_pass(net: nn.Module):
    eager = copy.deepcopy(net)
    found = grad(lambda p: loss(net, p, X, TARGET))(parameters(net))
    wanted = eager_gradients(eager)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])
    assert net[0].noise.key.tolist() == eager[0].noise.key.tolist() == [0, 1, 0, 0, 0]


def test_per_sample_gradients_have_the_noise_of_the_batch(net: nn.Module):
    """Lane v of a vmap over samples draws what sample v of the batch draws, so the lanes add up to its gradient."""
    eager = copy.deepcopy(net)
    lanes = vmap(grad(lambda p, x, t: loss(net, p, x[None], t[None])), (None, 0, 0), randomness="different")
    found, wanted = lanes(parameters(net), X, TARGET), eager_gradients(eager)
    for name in wanted:
        assert found[name].shape == (5, *wanted[name].shape)
        torch.testing.assert_close(found[name].sum(0), wanted[name])


def test_draws_and_lanes_keep_apart(net: nn.Module):
    """With K draws inside of each lane, lane v of draw k has the noise of sample v in draw k of the whole batch."""
    eager = copy.deepcopy(net)
    with noiseprop.sampling(net, draws=3), noiseprop.sampling(eager, draws=3):
        net(X)  # once outside of vmap, where it can be tried whether draws may share what comes before the noise
        noiseprop.reset_noise(net, 0)
        found = vmap(lambda x: net(x[None]), randomness="different", out_dims=1)(X).squeeze(2)
        torch.testing.assert_close(found, eager(X))


def test_same_randomness_gives_all_lanes_the_noise_of_one_sample(net: nn.Module):
    found = vmap(lambda x: net(x[None])[0], randomness="same")(X)
    for row, x in zip(found, X, strict=True):
        noiseprop.reset_noise(net, 0)
        torch.testing.assert_close(row, net(x[None])[0])


def test_an_ensemble_keeps_each_models_own_stream(net: nn.Module):
    models = [copy.deepcopy(net) for _ in range(3)]
    for seed, model in enumerate(models):
        noiseprop.reset_noise(model, seed)
        model[0].noise.sigma.data.mul_(seed + 1)
    values, buffers = stack_module_state(models)
    found = vmap(lambda p, b: functional_call(net, (p, b), (X,)))(values, buffers)
    torch.testing.assert_close(found, torch.stack([model(X) for model in models]))
    assert buffers["0.noise.key"].tolist() == [[seed, 1, 0, 0, 0] for seed in range(3)]


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's forward mode uses it
def test_jacobians_both_ways_and_second_derivatives(net: nn.Module):
    sigma = net[0].noise.sigma.detach()

    def output(sigma: Tensor) -> Tensor:
        return functional_call(net, {"0.noise.sigma": sigma}, (X,))

    with noiseprop.sampling(net, "frozen", key=3):
        wanted = torch.autograd.functional.jacobian(output, sigma)
        torch.testing.assert_close(jacrev(output)(sigma), wanted)
        torch.testing.assert_close(jacfwd(output, randomness="same")(sigma), wanted)
        vectorised = torch.autograd.functional.jacobian(output, sigma, vectorize=True)
        torch.testing.assert_close(vectorised, wanted, **ROUNDING)
        tangent = torch.linspace(1, 2, 6, dtype=torch.float64)
        torch.testing.assert_close(jvp(output, (sigma,), (tangent,))[1], wanted @ tangent)
        curvature = torch.autograd.functional.hessian(lambda s: output(s).square().sum(), sigma)
        twice = jacfwd(jacrev(lambda s: output(s).square().sum()), randomness="same")(sigma)
        torch.testing.assert_close(twice, curvature)
        assert curvature.abs().max() > 0.1


def test_batched_gradients_through_one_graph(net: nn.Module):
    weights = torch.randn(4, 5, 3, dtype=torch.float64)
    y = net(X)
    found = torch.autograd.grad(y, net[0].noise.sigma, weights, is_grads_batched=True, retain_graph=True)[0]
    for row, weight in zip(found, weights, strict=True):
        alone = torch.autograd.grad(y, net[0].noise.sigma, weight, retain_graph=True)[0]
        torch.testing.assert_close(row, alone, **ROUNDING)


def test_shapes_that_share_a_sigma():
    noise = noiseprop.NeuronNoise((3, 1)).double()
    x = torch.zeros(5, 3, 4, dtype=torch.float64)
    noiseprop.reset_noise(noise, 1)
    y = noise(x)
    noiseprop.reset_noise(noise, 1)
    found = vmap(
        lambda x: grad(lambda s: functional_call(noise, {"sigma": s}, (x[None],)).sum())(noise.sigma.detach()),
        randomness="different",
    )(x)
    torch.testing.assert_close(found, y.detach().sum(2, keepdim=True))  # sigma is 1 and x is 0, so y is eps


def test_low_precision_keeps_its_dtype():
    noise = noiseprop.NeuronNoise((3,))
    x = torch.zeros(5, 3, dtype=torch.bfloat16)
    assert vmap(lambda x: noise(x[None])[0], randomness="different")(x).dtype == torch.bfloat16


def test_vmap_must_be_told_about_randomness(net: nn.Module):
    with pytest.raises(InputError, match=r"^0: torch.vmap .* randomness='different'"):
        vmap(lambda x: net(x[None])[0])(X)


def test_lanes_that_cannot_have_noise_of_their_own(net: nn.Module):
    with pytest.raises(InputError, match=r"draws=K"):
        vmap(lambda _: net(X), randomness="different")(torch.arange(3))
    shared = vmap(lambda k: net(X) + 0 * k, randomness="same")(torch.arange(3))
    assert torch.equal(shared[0], shared[2])
