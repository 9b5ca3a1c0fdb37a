from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from noiseprop.models import ResNet, resnet18, resnet34


def linear(*sizes: int) -> int:
    return sum(a * b + b for a, b in pairwise(sizes))


# The published totals of the ImageNet versions (torchvision), which end in Linear(512, 1000) and start with 7 x 7.
TRUNK18 = 11_689_512 - linear(512, 1000) - 3 * 64 * 49 + 3 * 64 * 9
TRUNK34 = 21_797_672 - linear(512, 1000)


def outputs(net: ResNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    net.eval()(x)
    return seen


@pytest.mark.parametrize(
    ("network", "head", "expected"),
    [
        (resnet18, {}, TRUNK18 + linear(512, 256, 128, 10)),
        (resnet18, {"head": ()}, TRUNK18 + linear(512, 10)),
        (resnet34, {}, TRUNK34 + linear(2048, 1024, 512, 256, 200)),
        (resnet34, {"head": ()}, TRUNK34 + linear(2048, 200)),
    ],
    ids=["18", "18-linear-head", "34", "34-linear-head"],
)
def test_parameters_are_those_of_the_known_networks(network, head, expected):
    assert sum(p.numel() for p in network(**head).parameters()) == expected


def test_resnet18_runs_at_32_16_8_4_pixels():
    seen = outputs(resnet18(), torch.rand(2, 3, 32, 32))
    assert [tuple(seen[f"layer{i}"].shape[1:]) for i in (1, 2, 3, 4)] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]
    assert [tuple(seen[f"head.fc{i}"].shape[1:]) for i in (1, 2, 3)] == [(256,), (128,), (10,)]


def test_resnet34_runs_at_32_16_8_4_pixels_too():
    seen = outputs(resnet34(), torch.rand(1, 3, 64, 64))
    assert tuple(seen["conv1"].shape[1:]) == tuple(seen["stem_pool"].shape[1:]) == (64, 32, 32)
    assert [tuple(seen[f"layer{i}"].shape[1:]) for i in (1, 2, 3, 4)] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]
    assert tuple(seen["pool"].shape[1:]) == (512, 2, 2)
    assert [tuple(seen[f"head.fc{i}"].shape[1:]) for i in (1, 2, 3, 4)] == [(1024,), (512,), (256,), (200,)]


def by_formula(weights: dict[str, torch.Tensor], x: torch.Tensor, *, stem: int, blocks: str, pool: int) -> torch.Tensor:
    """The logits of a ResNet at inference, as He et al. (2016) draw its basic blocks; `stem` is a stride."""

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"{name}.weight"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts, eps=1e-5)

    x = norm(conv((x - weights["mean"]) / weights["std"], "conv1", stem), "bn1").relu()
    if stem == 2:
        x = functional.max_pool2d(x, 3, stride=1, padding=1)
    for block in blocks.split():
        stride = 2 if block in ("2.0", "3.0", "4.0") else 1
        inner = norm(conv(x, f"layer{block}.conv1", stride), f"layer{block}.bn1").relu()
        residual = norm(conv(inner, f"layer{block}.conv2"), f"layer{block}.bn2")
        if stride == 2:
            x = norm(conv(x, f"layer{block}.shortcut.0", stride), f"layer{block}.shortcut.1")
        x = (residual + x).relu()
    x = functional.avg_pool2d(x, pool).flatten(1)
    last = sum(name.startswith("head.") for name in weights) // 2
    for number in range(1, last + 1):
        x = functional.linear(x, weights[f"head.fc{number}.weight"], weights[f"head.fc{number}.bias"])
        x = x.relu() if number < last else x
    return x


@pytest.mark.parametrize(
    ("network", "side", "shape"),
    [
        (resnet18, 32, {"stem": 1, "blocks": "1.0 1.1 2.0 2.1 3.0 3.1 4.0 4.1", "pool": 4}),
        (
            resnet34,
            64,
            {"stem": 2, "blocks": "1.0 1.1 1.2 2.0 2.1 2.2 2.3 3.0 3.1 3.2 3.3 3.4 3.5 4.0 4.1 4.2", "pool": 2},
        ),
    ],
    ids=["18", "34"],
)
def test_logits_are_those_of_the_formula(network, side, shape):
    torch.manual_seed(0)
    net = network().double().eval()
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1:  # what BatchNorm starts with would leave a map as it is
            low = -0.5 if name.endswith(("mean", "bias")) else 0.5
            tensor.uniform_(low, low + 1)
    x = torch.rand(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        logits, expected = net(x), by_formula(net.state_dict(), x, **shape)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("network", "blocks", "linears"), [(resnet18, 8, 3), (resnet34, 16, 4)], ids=["18", "34"])
def test_sites_are_the_last_convolutions_or_the_sums(network, blocks, linears):
    net = network()
    modules = dict(net.named_modules())
    conv = [name for name in net.sites["all"] if isinstance(modules[name], nn.Conv2d)]
    assert len(net.sites["fc"]) == linears
    assert all(isinstance(modules[name], nn.Linear) for name in net.sites["fc"])
    assert len(conv) == blocks
    assert all(name.endswith(".conv2") for name in conv)
    assert net.sites["all"] == (*conv, *net.sites["fc"])
    assert net.sites["all-released"][0] == "bn1"
    assert [name.replace(".sum", ".conv2") for name in net.sites["all-released"][1:]] == list(net.sites["all"])


def test_the_released_site_lies_after_the_addition_and_before_the_activation():
    net = resnet18()
    seen = outputs(net, torch.rand(2, 3, 32, 32))
    for block, before in (("layer1.0", "stem_pool"), ("layer2.0", "layer1.1"), ("layer4.1", "layer4.0")):
        shortcut = seen[f"{block}.shortcut"]
        assert shortcut is seen[before] or block == "layer2.0"
        torch.testing.assert_close(seen[f"{block}.sum"], seen[f"{block}.bn2"] + shortcut, rtol=0, atol=0)
        torch.testing.assert_close(seen[block], functional.relu(seen[f"{block}.sum"]), rtol=0, atol=0)
    torch.testing.assert_close(seen["stem_pool"], functional.relu(seen["bn1"]), rtol=0, atol=0)


def test_normalisation_happens_inside():
    net = resnet18().eval()
    x = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    plain = resnet18(pixels=((0.0,) * 3, (1.0,) * 3)).eval()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k not in ("mean", "std")}, strict=False)
    torch.testing.assert_close(net(x), plain((x - mean) / std))
    assert {"mean", "std"} <= set(net.state_dict())
