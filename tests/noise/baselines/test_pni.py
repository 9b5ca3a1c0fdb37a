from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import noiseprop
from noiseprop.errors import InputError
from noiseprop.noise import baselines
from noiseprop.noise.attach.add_noise import LayerOptions, place_noise, remove_noise
from noiseprop.noise.attach.selectors import before
from noiseprop.noise.baselines.base import make_shared_key
from noiseprop.noise.baselines.pni import WeightNoise
from noiseprop.noise.stream import make_key

KEY = 11


def frozen(net: nn.Module, x: Tensor, draws: int | None = None) -> Tensor:
    with noiseprop.sampling(net, "frozen", key=KEY, draws=draws):
        return net(x)


def clean(net: nn.Module, x: Tensor) -> Tensor:
    with noiseprop.sampling(net, "off"):
        return net(x)


# on activations -----------------------------------------------------------------------------------------------------


def test_activations_get_normal_noise_in_proportion_to_their_own_spread() -> None:
    net = baselines.pni(nn.Identity(), [""], on="activations", alpha=0.4, example=torch.zeros(1, 500))
    x = torch.randn(40, 500) * torch.arange(1, 41).view(-1, 1) + 3
    eps = ((net(x) - x) / (0.4 * x.std(1, correction=0, keepdim=True))).detach()
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    torch.testing.assert_close(eps.std(1), torch.ones(40), rtol=0.15, atol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_activation_noise_is_alpha_times_the_root_of_the_mean_square_deviation_times_eps(shared: bool) -> None:
    net = baselines.pni(nn.Identity(), [""], on="activations", alpha=0.4, shared=shared, example=torch.zeros(1, 6))
    x = torch.randn(5, 6)
    eps = noiseprop.gaussian_noise(torch.zeros(1 if shared else 5, 6), torch.ones(()), key=make_key(KEY))
    apart = x.view(1, -1) if shared else x
    std = (apart - apart.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(frozen(net, x), x + 0.4 * std * eps)


def test_shared_noise_is_in_proportion_to_the_spread_of_the_batch() -> None:
    net = baselines.pni(nn.Identity(), [""], on="activations", alpha=0.4, shared=True, example=torch.zeros(1, 20_000))
    x = torch.randn(4, 20_000) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    noise = (net(x) - x).detach()
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=1e-3, atol=1e-5)
    assert float(noise[0].std()) == pytest.approx(0.4 * float(x.std()), rel=0.03)


def test_one_alpha_a_layer_learns_by_its_noise_and_x_as_if_the_spread_were_constant() -> None:
    net = baselines.pni(nn.Identity(), [""], on="activations", alpha=0.4, example=torch.zeros(1, 6))
    x = torch.randn(5, 6, requires_grad=True)
    y, weight = net(x), torch.randn(5, 6)
    (alpha,) = noiseprop.sigmas(net)
    assert alpha.shape == ()
    to_alpha, to_x = torch.autograd.grad((y * weight).sum(), [alpha, x])
    torch.testing.assert_close(to_alpha, (weight * (y - x).detach() / 0.4).sum(), rtol=1e-4, atol=1e-5)
    assert torch.equal(to_x, weight)


def test_noise_on_inputs_stands_before_the_module() -> None:
    net = baselines.pni(nn.Linear(3, 2), before("linear"), on="activations", example=torch.zeros(1, 3))
    x = torch.randn(4, 3)
    assert (net(x) - clean(net, x)).abs().min() > 0
    assert "(alpha)" not in str(net)


# on weights ---------------------------------------------------------------------------------------------------------

MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 3), (4,)),
    "linear on sequences": (nn.Linear(4, 3, bias=False), (5, 4)),
    "conv1d": (nn.Conv1d(2, 3, 3, dilation=2), (2, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 7, 7)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
}


@pytest.mark.parametrize("draws", [None, 3])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_weight_noise_against_a_loop_over_samples_with_noisy_weights(
    kind: str, shared: bool, draws: int | None
) -> None:
    plain, shape = MODULES[kind]
    net: Any = baselines.pni(nn.Sequential(plain), ["0"], shared=shared, alpha=0.7, example=torch.zeros(1, *shape))
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    weight = plain.weight.detach().clone()
    level = 0.7 * weight.std(correction=0)
    expected = []
    for draw in range(draws or 1):
        key = make_key(KEY)
        key[1] += draw
        count = 1 if shared else len(x)
        noise = noiseprop.gaussian_noise(
            torch.zeros(count, *weight.shape), level, key=make_shared_key(key) if shared else key
        )
        rows = []
        for i in range(len(x)):
            plain.weight.data = weight + noise[0 if shared else i]
            rows.append(clean(net, x[i : i + 1]))
        plain.weight.data = weight
        expected.append(torch.cat(rows))
    got = frozen(net, x, draws)
    torch.testing.assert_close(got, torch.stack(expected) if draws else expected[0], rtol=1e-4, atol=1e-5)
    remove_noise(net)


def test_its_gradients_are_those_of_the_noisy_weight() -> None:
    torch.manual_seed(0)
    net = baselines.pni(nn.Linear(4, 3), [""], shared=True, alpha=0.7, example=torch.zeros(1, 4))
    x, weight = torch.randn(5, 4), torch.randn(5, 3)
    noise = noiseprop.gaussian_noise(torch.zeros(1, 3, 4), torch.ones(()), key=make_key(KEY))[0]
    alpha = net.noise.sigma
    by_hand = x @ (net.weight + alpha * net.weight.std(correction=0).detach() * noise).T + net.bias
    expected = torch.autograd.grad((by_hand * weight).sum(), [alpha, net.weight, net.bias])
    got = torch.autograd.grad((frozen(net, x) * weight).sum(), [alpha, net.weight, net.bias])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_independent_weight_noise_has_the_variance_of_the_weights() -> None:
    """Check that a sample's logits vary by ``alpha^2 std(W)^2 |x|^2``, independently of the others'."""
    torch.manual_seed(0)
    net = baselines.pni(nn.Linear(6, 2), [""], alpha=0.5, example=torch.zeros(1, 6))
    x = torch.randn(1, 6)
    with torch.no_grad():
        y = net(x.expand(20_000, 6))
    expected = 0.25 * net.weight.detach().var(correction=0) * x.square().sum()
    torch.testing.assert_close(y.var(0), expected.expand(2), rtol=0.05, atol=0)
    assert abs(float(torch.corrcoef(y.T)[0, 1])) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([y[:-1, 0], y[1:, 0]]))[0, 1])) < 0.03


def test_a_time_first_batch_and_an_input_by_name() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.RNN(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:  # (T, B, 3)
            return self.head(input=self.rnn(x)[0])

    model: Any = Recurrent()
    settings = LayerOptions(granularity="layer", batch_dim=1, make_layer=partial(WeightNoise, shared=False))
    place_noise(model, "head", settings, torch.zeros(5, 2, 3))
    x = torch.randn(5, 1, 3).expand(5, 4, 3)
    extra = (model(x) - clean(model, x)).detach()  # (T, B, 2)
    weights = torch.linalg.lstsq(model.rnn(x)[0].detach().movedim(1, 0), extra.movedim(1, 0)).solution  # (B, 4, 2)
    hidden = model.rnn(x)[0].detach().movedim(1, 0)
    torch.testing.assert_close(hidden @ weights, extra.movedim(1, 0), rtol=1e-3, atol=1e-5)  # one matrix for all times
    assert not torch.allclose(weights[0], weights[1])


def test_errors_leave_the_model_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    for options, expected in (
        ({"where": nn.LayerNorm}, "1 is a LayerNorm"),
        ({"where": before("linear")}, "which have no weights"),
        ({"on": "inputs"}, "'activations' or 'weights'"),
        ({"where": "lstm"}, "no module"),
    ):
        with pytest.raises(InputError, match=expected):
            baselines.pni(net, example=torch.zeros(1, 3), **options)
        assert not noiseprop.is_noisy(net)
