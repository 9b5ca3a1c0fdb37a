import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn

from noiseprop import add_noise, noise_layers, sampling
from noiseprop.errors import InputError
from noiseprop.models import resnet18
from noiseprop.noise.stream import find_sources
from noiseprop.saliency import smoothgrad


class Small(nn.Module):
    """Network with batch norm, convolutions and a bent response; in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def images(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 6, 6, generator=generator).double(), torch.arange(count) % 5


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def input_noise(shape: tuple[int, ...], samples: int, seed: int = 3) -> Tensor:
    """Return the noise that `smoothgrad` draws after its key: (samples, B, C, H, W)."""
    generator = seeded(seed)
    torch.randint(2**62, (), generator=generator)
    return torch.stack([torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(samples)])


@pytest.mark.parametrize("sigma", [0.15, 0.4])
def test_equals_captum_on_the_same_noise(sigma, monkeypatch):
    model, (x, y) = Small().eval(), images()
    noise = sigma * input_noise(x.shape, 7)
    # captum lays an image's copies side by side: (B * samples, C, H, W)
    monkeypatch.setattr(torch, "normal", lambda mean, std: noise.transpose(0, 1).flatten(0, 1))
    tunnel = NoiseTunnel(Saliency(model))
    theirs = tunnel.attribute(x, nt_type="smoothgrad_sq", nt_samples=7, stdevs=sigma, target=y, abs=False).sum(1)
    ours = smoothgrad(model, x, y, sigma=sigma, samples=7, generator=seeded())
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=0)
    assert float(ours.min()) >= 0
    assert not torch.allclose(ours, smoothgrad(model, x, y, sigma=sigma, samples=6, generator=seeded()), rtol=1e-3)


def test_without_input_noise_it_is_the_squared_gradient():
    model, (x, y) = Small().eval(), images()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)
    ours = smoothgrad(model, x.detach(), y, sigma=0.0, samples=2)
    torch.testing.assert_close(ours, gradient.square().sum(1), rtol=1e-12, atol=0)


def test_the_networks_noise_is_averaged_over_by_hand():
    """y = a (w x + sigma eps)^2 / 2 has the gradient a w (w x + sigma eps): its square's mean is known."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            half = self.site(2 * x.flatten(1)).square().sum(1, keepdim=True) / 2
            return torch.cat([half, -half], 1)

    model = add_noise(Quadratic(), ["site"], init=0.5, example=torch.zeros(1, 1, 2, 2))
    x = torch.full((1, 1, 2, 2), 0.3)
    found = smoothgrad(model, x, torch.tensor([0]), sigma=0.0, samples=40, draws=100, generator=seeded())
    expected = 4 * (0.6**2 + 0.5**2)
    assert found.mean().item() == pytest.approx(expected, rel=0.03)  # 16,000 draws
    with sampling(model, "off"):
        off = smoothgrad(model, x, torch.tensor([0]), sigma=0.0, samples=2, draws=3)
    torch.testing.assert_close(off, torch.full((1, 2, 2), 4 * 0.6**2))


def test_more_draws_measure_the_same_more_exactly():
    model = add_noise(Small(), ["body.0"], init=0.6, example=torch.zeros(1, 3, 6, 6).double()).eval()
    x, y = images(1)

    def spread(draws: int) -> tuple[float, float]:
        maps = torch.stack([smoothgrad(model, x, y, samples=4, draws=draws, generator=seeded(i)) for i in range(40)])
        return float(maps.mean()), float(maps.std(0).mean())

    (mean_1, std_1), (mean_16, std_16) = spread(1), spread(16)
    assert mean_16 == pytest.approx(mean_1, rel=0.1)
    assert std_16 < 0.75 * std_1


def test_one_seed_gives_one_map_and_the_model_is_left_as_found():
    model = add_noise(Small(), ["body.4"], init=0.3, example=torch.zeros(1, 3, 6, 6).double()).train()
    model.body[0].weight.requires_grad_(False)
    model(images()[0]).sum().backward()
    x, y = images()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng, flags = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    first = smoothgrad(model, x, y, samples=3, draws=2, generator=seeded())
    assert torch.equal(first, smoothgrad(model, x, y, samples=3, draws=2, generator=seeded()))
    assert torch.equal(smoothgrad(model, x, y, samples=3), smoothgrad(model, x, y, samples=3))
    assert not torch.equal(first, smoothgrad(model, x, y, samples=3, draws=2, generator=seeded(4)))
    assert model.training
    assert all(layer.training for layer in noise_layers(model).values())
    assert [p.requires_grad for p in model.parameters()] == flags
    for before, p in zip(grads, model.parameters(), strict=True):
        assert (p.grad is None) if before is None else torch.equal(p.grad, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert find_sources(model)


def test_it_works_under_no_grad_and_leaves_the_model_after_an_error():
    model, (x, y) = Small().train(), images()
    expected = smoothgrad(model, x, y, samples=2)
    with torch.no_grad():
        assert torch.equal(smoothgrad(model, x, y, samples=2), expected)
    with torch.inference_mode():
        assert torch.equal(smoothgrad(model, x, y, samples=2), expected)
    with pytest.raises(InputError, match="labels lie in"):
        smoothgrad(model, x, y + 3, samples=2)
    assert model.training


def test_a_resnets_maps_have_the_images_size_and_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model, x = resnet18(), torch.rand(3, 3, 32, 32, generator=seeded())
    y = torch.tensor([1, 2, 3])
    maps = smoothgrad(model, x, y, sigma=0.0, samples=1)
    assert maps.shape == (3, 32, 32)
    torch.testing.assert_close(maps[1:2], smoothgrad(model, x[1:2], y[1:2], sigma=0.0, samples=1), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigma": -0.1}, "sigma"),
        ({"samples": 0}, "samples"),
        ({"draws": 0}, "draws"),
        ({"x": torch.rand(3, 6, 6)}, r"got images of shape \(3, 6, 6\), expected \(B, C, H, W\)"),
        ({"x": 2 + torch.rand(3, 3, 6, 6)}, r"expected \[0, 1\]"),
        ({"model": nn.Sequential(Small(), nn.Threshold(9e9, 0.0))}, None),
    ],
)
def test_bad_input_is_one_sentence(change, says):
    x, y = images()
    options = {"model": Small(), "x": x, "target": y} | change
    if says is None:  # a constant network: no gradient, but no error either
        assert float(smoothgrad(**options).max()) == 0
        return
    with pytest.raises(InputError, match=says):
        smoothgrad(**options)


def test_a_network_that_cuts_the_graph_raises_an_error():
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :5]

    x, y = images()
    with pytest.raises(InputError, match="carry no gradient to the images"):
        smoothgrad(Cut(), x, y)
