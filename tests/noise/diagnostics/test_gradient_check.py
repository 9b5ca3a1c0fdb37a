"""Check that `check_theorems` passes correct gradients and fails wrong ones, each in the intended check."""

import copy

import pytest
import torch
from torch import Tensor, nn

from noiseprop import add_noise, noise_layers
from noiseprop.errors import InputError
from noiseprop.models import mlp
from noiseprop.noise import gaussian_noise as op
from noiseprop.noise.baselines import pni
from noiseprop.noise.diagnostics.gradient_check import (
    MAX_AUTOGRAD_ERROR,
    MAX_DIFFERENCE_ERROR,
    LayerCheck,
    MeanEstimate,
    check_theorems,
)
from noiseprop.noise.kernels import dispatch as kernels


def batch(*shape: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, *shape, generator=generator), torch.randint(classes, (6,), generator=generator)


def three_layers(middle: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    between = [middle] if middle is not None else []
    return nn.Sequential(nn.Linear(4, 8), *between, nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3))


class Halved(torch.autograd.Function):
    """Identity with half its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class Wrong(nn.Module):
    def forward(self, x):
        return Halved.apply(x)


class Threshold(nn.Module):
    """Hard threshold, whose derivative is 0 wherever it exists."""

    def forward(self, x):
        return (x > 0).to(x.dtype) + 0 * x


@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
def test_correct_networks_pass(granularity):
    torch.manual_seed(0)
    parts = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 10))
    net = nn.Sequential(*parts)
    add_noise(net, "all", granularity=granularity, init=0.5, example=torch.zeros(1, 1, 10, 10), mean=True)
    x, y = batch(1, 10, 10)
    before = copy.deepcopy(net.state_dict())
    found = check_theorems(net, x, y, draws=40)
    assert [layer.path for layer in found] == ["0", "3", "5"]
    assert [layer.sigmas for layer in found] == [noise.sigma.numel() for noise in noise_layers(net).values()]
    assert all(layer.theorem_1 and layer.theorem_2 for layer in found)
    assert all(layer.estimate.error > 0 and layer.derivative.error > 0 for layer in found)
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(module.training for module in net.modules())
    assert found == check_theorems(net, x, y, draws=40)


def test_negative_sigmas_and_both_sides_of_a_growing_sigma_pass():
    net = add_noise(three_layers(), "linear", init="normal", example=torch.zeros(1, 4), key=3)
    assert any((noise.sigma < 0).any() for noise in noise_layers(net).values())
    found = check_theorems(net, *batch(4, classes=3), draws=200)
    assert all(layer.theorem_1 and layer.theorem_2 for layer in found)
    last = found[-1]  # more noise on the logits costs loss, which no error bar hides
    assert last.estimate.value > 8 * last.estimate.error
    assert last.derivative.value > 8 * last.derivative.error


def test_a_wrong_backward_pass_fails_ahead_of_it_and_only_there():
    net = add_noise(three_layers(Wrong()), "linear", init=1.0, example=torch.zeros(1, 4))
    first, *others = check_theorems(net, *batch(4, classes=3), draws=200)
    assert first.autograd_error < MAX_AUTOGRAD_ERROR  # the noise itself is right
    assert not first.theorem_1
    assert first.finite_difference_error > 0.1
    assert all(layer.theorem_1 and layer.theorem_2 for layer in others)
    wrong_last = nn.Sequential(three_layers(), Wrong())
    add_noise(wrong_last, "linear", init=1.0, example=torch.zeros(1, 4))
    assert not any(layer.theorem_2 for layer in check_theorems(wrong_last, *batch(4, classes=3), draws=200)[-1:])


def test_a_jump_in_the_loss_fails_theorem_2_alone():
    net = nn.Sequential(nn.Linear(4, 8), Threshold(), nn.Linear(8, 3))
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, -1.0)  # a neuron fires where its noise is above 1, the more often the larger sigma,
    net[2].weight.data = torch.tensor([[-1.0], [0.0], [0.0]]).repeat(1, 8)  # and then costs
    add_noise(net, ["0"], init=1.0, example=torch.zeros(1, 4))
    (found,) = check_theorems(net, torch.rand(32, 4), torch.zeros(32, dtype=torch.int64), draws=200)
    assert found.theorem_1
    assert found.estimate == MeanEstimate(0, 0)
    assert not found.theorem_2


def test_a_wrong_kernel_fails_the_comparison_with_autograd(monkeypatch):
    net = add_noise(three_layers(), "linear", init=1.0, example=torch.zeros(1, 4))
    right = kernels.compute_sigma_gradient
    monkeypatch.setattr(kernels, "compute_sigma_gradient", lambda *arguments: 1.01 * right(*arguments))
    assert op.kernels is kernels
    for layer in check_theorems(net, *batch(4, classes=3), draws=2):
        assert layer.autograd_error == pytest.approx(0.01, rel=1e-2)
        assert not layer.theorem_1


def test_noise_of_another_form_is_checked_without_autograd():
    torch.manual_seed(0)
    net = pni(mlp((16, 8, 3)))
    found = check_theorems(net, *batch(1, 4, 4, classes=3), draws=100)
    assert all(layer.autograd_error is None for layer in found)
    assert all(layer.theorem_1 and layer.theorem_2 for layer in found)


def test_a_layer_without_influence_passes_and_a_nan_does_not():
    zero = MeanEstimate(0.0, 0.0)
    assert LayerCheck("x", 1, 0.0, 0.0, zero, zero).theorem_2
    net = add_noise(three_layers(), "linear", init=1.0, example=torch.zeros(1, 4))
    x, y = batch(4, classes=3)
    x[0, 0] = float("nan")
    assert not any(layer.theorem_1 or layer.theorem_2 for layer in check_theorems(net, x, y, draws=2))


def test_dropout_and_batch_norm_are_in_eval_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    add_noise(net, "linear", init=1.0, at_inference=False, example=torch.zeros(2, 4))
    found = check_theorems(net, *batch(4, classes=3), draws=100)
    assert all(layer.theorem_1 and layer.theorem_2 for layer in found)
    assert all(layer.estimate.error > 0 for layer in found)
    assert max(layer.finite_difference_error for layer in found) < MAX_DIFFERENCE_ERROR
    assert net[1].running_mean.abs().sum() == 0


def test_models_that_cannot_be_checked_raise_an_error():
    x, y = batch(4, classes=3)
    with pytest.raises(InputError, match="has no learned noise"):
        check_theorems(three_layers(), x, y)
    with pytest.raises(InputError, match="has no learned noise"):
        check_theorems(add_noise(three_layers(), learn=False, example=x), x, y)
    net = add_noise(three_layers(), example=x)
    with pytest.raises(InputError, match="draws=1; take 2 or more"):
        check_theorems(net, x, y, draws=1)

    class Stubborn(nn.Module):
        def forward(self, x):
            return x.float()

    net = add_noise(three_layers(Stubborn()), example=x)
    with pytest.raises(InputError, match="does not compute in float64"):
        check_theorems(net, x, y, draws=2)
