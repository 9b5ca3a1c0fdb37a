import torch
from torch import nn

import noiseprop
from noiseprop.noise import baselines


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 4)
    )


def test_levels_stand_before_the_convolutions_and_are_fixed() -> None:
    net = baselines.rse(network(), example=torch.zeros(1, 1, 6, 6)).eval()
    layers = noiseprop.noise_layers(net)
    assert {path: round(float(layer.sigma), 6) for path, layer in layers.items()} == {"0.noise": 0.2, "3.noise": 0.1}
    assert not noiseprop.sigmas(net)
    seen: dict[str, torch.Tensor] = {}
    for path, layer in layers.items():
        layer.register_forward_hook(lambda m, a, out, path=path: seen.__setitem__(path, out - a[0]))
    with torch.no_grad():
        net(torch.rand(3000, 1, 6, 6))  # in eval mode: the noise acts at inference
    for path, level in (("0.noise", 0.2), ("3.noise", 0.1)):
        assert abs(float(seen[path].std()) - level) < 0.01 * level
        assert abs(float(seen[path].mean())) < 0.01 * level


def test_the_second_call_counts_its_own_first() -> None:
    net = baselines.rse(network(), ["0"], first=0.3, example=torch.zeros(1, 1, 6, 6))
    baselines.rse(net, ["3"], first=0.7, example=torch.zeros(1, 1, 6, 6))
    assert [round(float(layer.sigma), 6) for layer in noiseprop.noise_layers(net).values()] == [0.3, 0.7]


def test_ensemble_is_the_mean_probability_of_single_passes() -> None:
    net = baselines.rse(network(), example=torch.zeros(1, 1, 6, 6), first=2.0).eval()
    x = torch.rand(5, 1, 6, 6)
    noiseprop.reset_noise(net, 1)
    apart = torch.stack([net(x).softmax(-1) for _ in range(10)]).mean(0)
    noiseprop.reset_noise(net, 1)
    together = baselines.self_ensemble(net, x, draws=10)
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(together.sum(-1), torch.ones(5))
