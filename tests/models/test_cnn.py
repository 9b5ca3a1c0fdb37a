import torch
from torch.nn import functional

from noiseprop.models import cnn


def test_parameters_are_the_paper_s():
    expected = (1 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (3136 + 1) * 128 + (128 + 1) * 10
    assert sum(p.numel() for p in cnn().parameters()) == expected


def test_forward_is_the_composition_of_its_layers():
    net = cnn(classes=4)
    x = torch.rand(3, 1, 28, 28)
    h = functional.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1).clamp_min(0)
    h = h.unflatten(3, (14, 2)).unflatten(2, (14, 2)).amax((3, 5))
    h = functional.conv2d(h, net.conv2.weight, net.conv2.bias, padding=1).clamp_min(0)
    h = h.unflatten(3, (7, 2)).unflatten(2, (7, 2)).amax((3, 5))
    h = (h.reshape(3, 3136) @ net.fc1.weight.T + net.fc1.bias).clamp_min(0)
    torch.testing.assert_close(net(x), h @ net.fc2.weight.T + net.fc2.bias)


def test_sites_are_the_outputs_before_the_activation():
    net = cnn()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in net.sites["all"]:
        net.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: shapes.update({name: (*out.shape,)}))
    net(torch.rand(2, 1, 28, 28))
    assert shapes == {"conv1": (2, 32, 28, 28), "conv2": (2, 64, 14, 14), "fc1": (2, 128), "fc2": (2, 10)}
    assert net.sites["fc"] == ("fc1", "fc2")


def test_pooling_before_relu_is_the_paper_s_network_to_the_bit_gradients_too():
    net = cnn()
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    h = functional.max_pool2d(functional.relu(net.conv1(x)), 2)
    h = functional.max_pool2d(functional.relu(net.conv2(h)), 2)
    logits = net.fc2(functional.relu(net.fc1(h.flatten(1))))
    assert torch.equal(net(x), logits)
    parameters = list(net.parameters())
    written_out = torch.autograd.grad(functional.cross_entropy(logits, y), parameters)
    ours = torch.autograd.grad(functional.cross_entropy(net(x), y), parameters)
    assert all(torch.equal(a, b) for a, b in zip(ours, written_out, strict=True))
