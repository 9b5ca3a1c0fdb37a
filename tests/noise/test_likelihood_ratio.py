import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import noiseprop
from noiseprop.errors import InputError, NoisepropError
from noiseprop.noise import likelihood_ratio
from noiseprop.noise.layer import Estimator, NeuronNoise
from noiseprop.noise.likelihood_ratio import likelihood_ratio_loss
from noiseprop.noise.sampling_state import PassScope

RATIO: Estimator = "likelihood-ratio"
PATHWISE: Estimator = "pathwise"
X = torch.tensor([0.8, -0.3], dtype=torch.float64)


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Thousands of tiny steps, which two threads only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net(activation: nn.Module, *, estimators: tuple[Estimator, ...] = (RATIO,)) -> nn.Sequential:
    """2 inputs, two noisy neurons in each of one or two hidden layers, one output; float64."""
    torch.manual_seed(3)
    hidden = [module for _ in estimators for module in (nn.Linear(2, 2), activation)]
    net = nn.Sequential(*hidden, nn.Linear(2, 1)).double()
    noiseprop.add_noise(net, where=[str(2 * i) for i in range(len(estimators))], example=X[None], key=1)
    for layer, estimator in zip(noiseprop.noise_layers(net).values(), estimators, strict=True):
        layer.double()
        layer.sigma.data = torch.tensor([0.6, 0.9], dtype=torch.float64)
        layer.estimator = estimator
    return net


def squared_error(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x)[..., 0] - 0.4).square()


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    wanted = [p for p in net.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]).detach()


def estimates(net: nn.Module, loss: Callable[[], Tensor], times: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of a gradient."""
    drawn = torch.stack([gradient(loss(), net) for _ in range(times)])
    return drawn.mean(0), drawn.std(0) / math.sqrt(times)


def assert_within(mean: Tensor, error: Tensor, expected: Tensor) -> None:
    assert ((mean - expected).abs() <= 4 * error + 1e-12).all(), (mean - expected) / error
    assert expected.norm() > 10 * error.norm()  # so the comparison says something


def expected_loss(net: nn.Sequential, x: Tensor, hermite: int = 40) -> Tensor:
    """E[squared error] of one sample for one noisy layer: exact for signs, by quadrature for smooth activations."""
    first, activation, last = net
    mean, sigma = functional.linear(x, first.weight, first.bias), first.noise.sigma
    total = torch.zeros((), dtype=torch.float64)
    if isinstance(activation, Sign):
        plus = torch.special.ndtr(mean / sigma)
        for signs in itertools.product((-1.0, 1.0), repeat=2):
            state = torch.tensor(signs, dtype=torch.float64)
            total = total + torch.where(state > 0, plus, 1 - plus).prod() * (last(state)[0] - 0.4).square()
        return total
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(hermite))
    weights = weights / weights.sum()
    for (a, p), (b, q) in itertools.product(zip(nodes, weights, strict=True), repeat=2):
        state = activation(mean + sigma * torch.stack([a, b]))
        total = total + p * q * (last(state)[0] - 0.4).square()
    return total


# exactly ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "of_sigma"), [((5,), (5,)), ((3, 4, 4), (3, 1, 1)), ((6,), (1,)), ((3, 2), (3, 2))])
@pytest.mark.parametrize("with_mean", [False, True])
def test_gradients_are_those_of_the_normal_log_density(
    shape: tuple[int, ...], of_sigma: tuple[int, ...], with_mean: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(10, *shape, dtype=torch.float64, requires_grad=True)
    sigma = torch.randn(of_sigma, dtype=torch.float64, requires_grad=True)  # of both signs
    mu = torch.randn(of_sigma, dtype=torch.float64, requires_grad=True) if with_mean else None
    weight, key, scope = torch.randn(10, dtype=torch.float64), torch.tensor([5, 2, 1]), PassScope()
    wanted = [t for t in (x, sigma, mu) if t is not None]

    y = likelihood_ratio.sample_with_score(x, sigma, mu, key, 2, scope)
    assert torch.equal(y, noiseprop.gaussian_noise(x, sigma, mu=mu, key=key, draws=2))
    (score,) = scope.scores
    assert torch.equal(score, torch.zeros(10, dtype=torch.float64))
    ours = torch.autograd.grad(score @ weight, wanted)

    mean = x if mu is None else x + mu
    density = torch.distributions.Normal(mean, sigma.abs().expand(shape)).log_prob(y.detach()).flatten(1).sum(1)
    for got, expected in zip(ours, torch.autograd.grad(density @ weight, wanted), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # eps itself is a float32


def test_value_is_the_mean_loss_and_compute_advantages_leave_themselves_out() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert likelihood_ratio._compute_advantages(losses).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]
    draws = torch.tensor([[1.0, 10.0], [3.0, 20.0]])
    assert likelihood_ratio._compute_advantages(draws).tolist() == [[-2, -10], [2, 10]]
    assert likelihood_ratio._compute_advantages(losses[None]).tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5]]
    assert likelihood_ratio._compute_advantages(losses[:1]).tolist() == [1.0]
    net = small_net(Sign())
    losses = squared_error(net, X.expand(7, 2))
    assert likelihood_ratio_loss(net, losses).item() == pytest.approx(losses.mean().item(), rel=1e-12)


def test_half_precision_keeps_the_dtype_and_its_gradients_are_those_of_full() -> None:
    sigma = torch.tensor([0.5, 2.0], requires_grad=True)
    got = []
    for dtype in (torch.float32, torch.bfloat16):
        x, scope = torch.zeros(8, 2, dtype=dtype, requires_grad=True), PassScope()
        y = likelihood_ratio.sample_with_score(x, sigma, None, torch.tensor([1]), 1, scope)
        assert y.dtype == dtype
        got.append(torch.autograd.grad(scope.scores[0].sum(), (sigma, x)))
        assert got[-1][1].dtype == dtype
    torch.testing.assert_close(got[0][0], got[1][0])


# on average ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.Tanh(), Sign()], ids=["tanh", "sign"])
def test_both_estimators_against_the_exact_gradient(activation: nn.Module) -> None:
    net = small_net(activation)
    x = X.expand(1000, 2)
    exact = gradient(expected_loss(net, X), net)
    ratio = estimates(net, lambda: likelihood_ratio_loss(net, squared_error(net, x)), 150)
    assert_within(*ratio, exact)
    net[0].noise.estimator = PATHWISE
    pathwise = estimates(net, lambda: squared_error(net, x).mean(), 150)
    if isinstance(activation, Sign):
        assert exact[:8].abs().min() > 0.01
        assert not pathwise[0][:8].any()  # first layer and sigma: nothing gets through the sign
    else:
        assert_within(*pathwise, exact)
        assert ((ratio[0] - pathwise[0]).abs() <= 4 * (ratio[1] ** 2 + pathwise[1] ** 2).sqrt()).all()


def test_against_a_finite_difference_of_the_expected_loss() -> None:
    net = small_net(nn.Tanh())
    x, h = X.expand(1000, 2), 1e-4
    mean, error = estimates(net, lambda: likelihood_ratio_loss(net, squared_error(net, x)), 150)
    exact = gradient(expected_loss(net, X), net)
    parameters = list(net.parameters())
    with torch.no_grad():
        differences = []
        for p in parameters:
            for i in range(p.numel()):
                flat = p.view(-1)
                middle = flat[i].item()
                flat[i] = middle + h
                above = expected_loss(net, X)
                flat[i] = middle - h
                below = expected_loss(net, X)
                flat[i] = middle
                differences.append((above - below) / (2 * h))
    numeric = torch.stack(differences)
    torch.testing.assert_close(exact, numeric, rtol=1e-6, atol=1e-8)
    assert_within(mean, error, numeric)


@pytest.mark.parametrize("estimators", [(RATIO, RATIO), (RATIO, PATHWISE), (PATHWISE, RATIO)])
def test_two_layers_of_either_kind(estimators: tuple[str, str]) -> None:
    x = X.expand(2000, 2)
    reference = small_net(nn.Tanh(), estimators=(PATHWISE, PATHWISE))
    expected, its_error = estimates(reference, lambda: squared_error(reference, x).mean(), 150)
    net = small_net(nn.Tanh(), estimators=estimators)
    mean, error = estimates(net, lambda: likelihood_ratio_loss(net, squared_error(net, x)), 150)
    assert ((mean - expected).abs() <= 4 * (error**2 + its_error**2).sqrt()).all()
    assert expected.norm() > 5 * error.norm()


@pytest.mark.parametrize("draws", [2, 3])
def test_the_baseline_is_unbiased_however_few_it_averages(draws: int) -> None:
    """With two draws, a baseline that held a draw's own loss would halve the gradient."""
    net = small_net(Sign())

    def loss() -> Tensor:
        with noiseprop.sampling(net, draws=draws):
            losses = squared_error(net, X.expand(500, 2))
        assert losses.shape == (draws, 500)
        return likelihood_ratio_loss(net, losses)

    assert_within(*estimates(net, loss, 100), gradient(expected_loss(net, X), net))


def test_the_baseline_lowers_the_variance() -> None:
    net = small_net(Sign())
    net[2].bias.data += 3.0  # a loss that is large everywhere

    def without() -> Tensor:
        losses = squared_error(net, X.expand(50, 2))
        (score,) = net[0].noise.scope.scores
        return losses.mean() + score @ losses.detach() / 50

    plain = estimates(net, without, 200)[1][:8]
    ours = estimates(net, lambda: likelihood_ratio_loss(net, squared_error(net, X.expand(50, 2))), 200)[1][:8]
    assert (ours < 0.5 * plain).all()


def test_a_network_of_signs_learns_from_it() -> None:
    torch.manual_seed(0)
    x = torch.rand(256, 2) * 2 - 1
    y = (x[:, 0] * x[:, 1] > 0).long()  # exclusive or: no linear model does it
    net = nn.Sequential(nn.Linear(2, 16), Sign(), nn.Linear(16, 2))
    noiseprop.add_noise(net, where=["0"], init=0.3, example=x[:1])
    net[0].noise.estimator = RATIO
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        likelihood_ratio_loss(net, functional.cross_entropy(net(x), y, reduction="none")).backward()
        optimizer.step()
    with torch.no_grad():
        assert (net(x).argmax(1) == y).float().mean() > 0.9


# in its surroundings --------------------------------------------------------------------------------------------------


def test_a_checkpointed_block_gives_the_same_gradients() -> None:
    class Net(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.block, self.head, self.again = nn.Linear(3, 4), nn.Linear(4, 1), again

        def forward(self, x: Tensor) -> Tensor:
            inner = lambda x: torch.sign(self.block(x))  # noqa: E731
            return self.head(checkpoint(inner, x, use_reentrant=False) if self.again else inner(x))

    got = []
    for again in (False, True):
        net = noiseprop.add_noise(Net(again), where=["block"], example=torch.zeros(1, 3))
        net.block.noise.estimator = RATIO
        for _ in range(2):
            loss = likelihood_ratio_loss(net, squared_error(net, torch.ones(6, 3)))
        got.append(gradient(loss, net))
        assert not net.block.noise.scope.scores
    assert torch.equal(*got)


def test_attached_layers_may_run_twice_in_a_pass() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(self.inner(torch.sign(self.inner(x))))

    net = noiseprop.add_noise(Twice(), where=["inner"], example=torch.zeros(1, 3))
    net.inner.noise.estimator = RATIO
    losses = net(torch.ones(5, 3)).sum(1)
    assert len(net.inner.noise.scope.scores) == 2
    likelihood_ratio_loss(net, losses).backward()
    assert net.inner.noise.sigma.grad.abs().min() > 0


def test_add_noise_takes_the_estimator() -> None:
    net = noiseprop.add_noise(
        nn.Sequential(nn.Linear(2, 2), Sign()), "linear", example=X[None].float(), estimator=RATIO
    )
    likelihood_ratio_loss(net, net(torch.ones(5, 2)).sum(1)).backward()
    assert net[0].noise.sigma.grad.abs().min() > 0
    with pytest.raises(InputError, match="'pathwise' or 'likelihood-ratio'"):
        noiseprop.add_noise(nn.Linear(2, 2), "", estimator="score")


def test_passes_without_gradients_or_noise_leave_nothing_behind() -> None:
    net = small_net(Sign())
    with torch.no_grad():
        squared_error(net, X[None])
    assert not net[0].noise.scope.scores
    with noiseprop.sampling(net, "off"):
        losses = squared_error(net, X[None])
    with pytest.raises(NoisepropError, match="drew no noise"):
        likelihood_ratio_loss(net, losses)


def test_the_plain_loss_is_refused_rather_than_left_without_gradients() -> None:
    net = small_net(nn.Tanh())
    with pytest.raises(NoisepropError, match="likelihood_ratio_loss"):
        squared_error(net, X[None]).sum().backward()


def test_errors() -> None:
    net = small_net(Sign())
    losses = squared_error(net, X.expand(4, 2))
    with pytest.raises(InputError, match="reduction='none'"):
        likelihood_ratio_loss(net, losses.mean())
    with pytest.raises(NoisepropError, match="once per pass"):
        likelihood_ratio_loss(net, losses)
    alone = nn.Sequential(nn.Linear(2, 2), NeuronNoise(2, estimator=RATIO))
    alone(torch.ones(3, 2))
    with torch.no_grad():
        alone(torch.ones(3, 2))
    with pytest.raises(NoisepropError, match="called again"):
        alone(torch.ones(3, 2))
    with pytest.raises(InputError, match="'pathwise' or 'likelihood-ratio'"):
        NeuronNoise(2, estimator="score")


def test_sigma_of_zero_is_refused() -> None:
    net = small_net(Sign())
    net[0].noise.sigma.data[0] = 0
    loss = likelihood_ratio_loss(net, squared_error(net, X[None]))
    with pytest.raises(InputError, match="Floor"):
        loss.backward()


def test_batch_norm_in_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 3), NeuronNoise(3, estimator=RATIO), nn.BatchNorm1d(3), nn.Linear(3, 1))
    losses = net(torch.randn(4, 2))[:, 0]
    with pytest.raises(InputError, match="2 is a batch norm"):
        likelihood_ratio_loss(net, losses)
    net.eval()
    losses = net(torch.randn(4, 2))[:, 0]
    likelihood_ratio_loss(net, losses).backward()
    assert net[1].sigma.grad.abs().min() > 0
