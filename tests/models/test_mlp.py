import pytest
import torch
from torch import nn

from noiseprop.errors import InputError
from noiseprop.models import mlp


def test_parameters_are_the_paper_s():
    assert sum(p.numel() for p in mlp().parameters()) == 784 * 100 + 100 + 100 * 50 + 50 + 50 * 10 + 10


@pytest.mark.parametrize(("name", "activation"), [("relu", torch.relu), ("sigmoid", torch.sigmoid)])
def test_forward_is_the_composition_of_its_layers(name, activation):
    net = mlp((12, 7, 5, 3), name)
    x = torch.rand(4, 3, 2, 2)
    h = x.reshape(4, 12)
    h = activation(h @ net.fc1.weight.T + net.fc1.bias)
    h = activation(h @ net.fc2.weight.T + net.fc2.bias)
    torch.testing.assert_close(net(x), h @ net.fc3.weight.T + net.fc3.bias)


def test_every_linear_is_a_site_the_last_one_too():
    net = mlp()
    linears = tuple(name for name, module in net.named_modules() if isinstance(module, nn.Linear))
    assert net.sites == {"fc": linears, "all": linears}
    assert linears == ("fc1", "fc2", "fc3")


@pytest.mark.parametrize("sizes", [(784,), (), (784, 0, 10)])
def test_sizes_are_checked(sizes):
    with pytest.raises(InputError, match="two or more positive"):
        mlp(sizes)


def test_an_unknown_activation_names_the_known_ones():
    with pytest.raises(InputError, match=r"'tanh'; choose one of relu, sigmoid"):
        mlp(activation="tanh")
