import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noiseprop
from noiseprop.errors import InputError
from noiseprop.noise import baselines
from noiseprop.noise.diagnostics.inspect_noise import inspect_noise

Batch = tuple[Tensor, Tensor]


def net(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return noiseprop.add_noise(model, ["0", "2"], example=torch.zeros(1, 4), **options)


def some_batches(count: int = 5, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def test_spread_is_the_noise_free_standard_deviation_over_all_images() -> None:
    model = net(init=0.7)
    given = [*some_batches(), *some_batches(1, 7)]  # the last batch is smaller
    first, second = inspect_noise(model, given)
    x = torch.cat([x for x, _ in given])
    with torch.no_grad():
        hidden = functional.linear(x, model[0].weight, model[0].bias)
        out = functional.linear(hidden.tanh(), model[2].weight, model[2].bias)
    torch.testing.assert_close(first.spread, hidden.double().std(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(second.spread, out.double().std(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(first.relative, 0.7 / hidden.double().std(0), rtol=1e-5, atol=0)
    assert [layer.path for layer in (first, second)] == ["0.noise", "2.noise"]


def test_gradients_are_those_of_the_batches_with_the_models_own_noise() -> None:
    model, given = net(init="normal"), some_batches()
    found = inspect_noise(model, given)
    by_hand: list[list[Tensor]] = [[], []]
    for x, y in given:
        with noiseprop.sampling(model, "off"), torch.no_grad():
            model(x)
        loss = functional.cross_entropy(model(x), y)  # the stream was put back, so these are the same passes
        for kept, gradient in zip(by_hand, torch.autograd.grad(loss, noiseprop.sigmas(model)), strict=True):
            kept.append(gradient.double())
    for layer, sigma, gradients in zip(found, noiseprop.sigmas(model), by_hand, strict=True):
        drawn = torch.stack(gradients) * sigma.detach().sign()
        torch.testing.assert_close(layer.gradient, drawn.mean(0))
        torch.testing.assert_close(layer.noise, drawn.std(0))
        torch.testing.assert_close(layer.snr, drawn.mean(0) / drawn.std(0))
        assert layer.floor == pytest.approx(2 / math.sqrt(5))
    assert any((sigma < 0).any() for sigma in noiseprop.sigmas(model))


def test_the_sign_says_where_descent_goes() -> None:
    """E (w z)^2 = (w m)^2 + w^2 sigma^2, of which sigma only wants to be less; minus it, more."""
    model = noiseprop.add_noise(nn.Linear(2, 2), [""], init=0.5, example=torch.zeros(1, 2))
    given = [(torch.ones(400, 2), torch.zeros(400)) for _ in range(20)]
    (down,) = inspect_noise(model, given, losses=lambda out, _: out.square().sum(1))
    (up,) = inspect_noise(model, given, losses=lambda out, _: -out.square().sum(1))
    assert down.gradient is not None
    assert down.snr is not None
    assert up.snr is not None
    torch.testing.assert_close(down.gradient, torch.full((2,), 1.0, dtype=torch.float64), rtol=0.1, atol=0)  # 2 sigma
    assert (down.snr > down.floor).all()
    assert (up.snr < -up.floor).all()


@pytest.mark.parametrize(
    ("granularity", "shape"), [("neuron", (2, 5, 5)), ("channel", (2, 1, 1)), ("layer", (1, 1, 1))]
)
def test_a_shared_sigma_is_compared_with_the_mean_variance_of_its_neurons(granularity: str, shape: tuple[int]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 3))
    noiseprop.add_noise(model, ["0"], granularity=granularity, example=torch.zeros(1, 1, 5, 5))
    x = torch.randn(64, 1, 5, 5) * torch.arange(1, 6).view(1, 1, 5, 1)
    (layer,) = inspect_noise(model, [(part, torch.zeros(16, dtype=torch.long)) for part in x.split(16)])
    with noiseprop.sampling(model, "off"), torch.no_grad():
        variance = model[0](x).double().var(0)
    expected = {
        "neuron": variance,
        "channel": variance.mean((1, 2), keepdim=True),
        "layer": variance.mean().view(1, 1, 1),
    }[granularity]
    assert layer.sigma.numel() == math.prod(shape)
    torch.testing.assert_close(layer.spread.flatten(), expected.sqrt().flatten(), rtol=1e-5, atol=0)


def test_the_model_is_left_as_it_was_and_noise_of_training_only_is_measured_too() -> None:
    model = net(at_inference=False)
    model.append(nn.BatchNorm1d(3))
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = inspect_noise(model, some_batches())
    assert all(layer.noise is not None and layer.noise.min() > 0 for layer in found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks for m in noiseprop.noise_layers(model).values())


def test_fixed_noise_has_a_size_but_no_gradient() -> None:
    for layer in inspect_noise(net(learn=False, init=-0.3), some_batches()):
        torch.testing.assert_close(layer.sigma, torch.full_like(layer.sigma, 0.3), rtol=1e-6, atol=0)
        assert layer.gradient is None
        assert layer.snr is None


def test_baselines_are_measured_in_units_of_the_pre_activation_too() -> None:
    model = baselines.variational_dropout(nn.Sequential(nn.Linear(3, 3)), alpha=0.25, example=torch.zeros(1, 3))
    x = torch.randn(40, 4, 3).movedim(1, 0) * torch.tensor([1.0, 2.0, 5.0]) + 1
    given = [(x.reshape(160, 3), torch.zeros(160, dtype=torch.long)) for _ in range(30)]
    (layer,) = inspect_noise(model, given)
    rms = given[0][0].double().square().mean(0).sqrt()
    torch.testing.assert_close(layer.sigma, 0.5 * rms, rtol=0.05, atol=0)
    torch.testing.assert_close(layer.spread, given[0][0].double().std(0), rtol=1e-2, atol=0)
    assert layer.gradient is not None
    plain = baselines.neftune(nn.Sequential(nn.Linear(3, 3)), "linear", alpha=2.0)
    (fixed,) = inspect_noise(plain, given)
    torch.testing.assert_close(fixed.sigma, torch.full((3,), 2 / 3, dtype=torch.float64), rtol=0.05, atol=0)
    assert fixed.gradient is None


def test_layers_of_the_likelihood_ratio_are_measured_by_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Hardtanh(0, 1e-9), nn.Linear(6, 3))  # nothing gets through by derivative
    noiseprop.add_noise(model, ["0"], example=torch.zeros(1, 4))
    model[0].noise.estimator = "likelihood-ratio"
    model[2].weight.data *= 1e9
    (layer,) = inspect_noise(model, some_batches())
    assert layer.gradient is not None
    assert layer.gradient.abs().min() > 0


def test_errors() -> None:
    with pytest.raises(InputError, match="add_noise"):
        inspect_noise(nn.Linear(4, 3), some_batches())
    for few in (0, 1):
        with pytest.raises(InputError, match=f"{few} batches"):
            inspect_noise(net(), some_batches(few))
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    noiseprop.add_noise(model, ["0"], granularity="channel", example=torch.zeros(1, 1, 9))
    with pytest.raises(InputError, match="one size"):
        inspect_noise(model, [(torch.zeros(4, 1, n), torch.zeros(4, dtype=torch.long)) for n in (9, 12)])
    broken = net()
    next(broken.parameters()).data[0, 0] = math.nan
    with pytest.raises(InputError, match="loss of NaN or infinity"):
        inspect_noise(broken, some_batches())
