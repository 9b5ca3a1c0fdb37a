"""Check the sites and shapes of `add_noise`, and that `remove_noise` leaves no trace."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.noise.oracle import noisy, snapshot
from torch import Tensor, nn
from torch.nn import functional

import noiseprop
from noiseprop import InputError, add_noise, before, noise_layers, remove_noise, sampling


class Block(nn.Module):
    """Residual block with all kinds of modules that `where` can select."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 4), Block(4, 8)])
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(8, 6)
        self.fc10 = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.fc10(functional.relu(self.fc1(self.drop(x.mean((2, 3))))))


X = torch.linspace(0, 1, 2 * 3 * 5 * 5).view(2, 3, 5, 5)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {path.removesuffix(".noise"): tuple(noise.sigma.shape) for path, noise in noise_layers(model).items()}


CONVS = ["blocks.0.conv", "blocks.0.shortcut", "blocks.1.conv", "blocks.1.shortcut"]


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("all", [*CONVS, "fc1", "fc10"]),
        ("linear", ["fc1", "fc10"]),
        ("conv", CONVS),
        ("fc1", ["fc1"]),  # and not fc10
        (["fc10", "fc1"], ["fc1", "fc10"]),  # in the model's order
        ("blocks.*.conv", ["blocks.0.conv", "blocks.1.conv"]),
        ("blocks.?", ["blocks.0", "blocks.1"]),
        ("*.conv", ["blocks.0.conv", "blocks.1.conv"]),
        ("fc[0-9]", ["fc1"]),
        (nn.BatchNorm2d, ["blocks.0.bn", "blocks.1.bn"]),
        ([nn.Linear, "blocks.0.bn"], ["blocks.0.bn", "fc1", "fc10"]),
        (lambda path, module: isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1), [CONVS[1], CONVS[3]]),
        (before(nn.ReLU), ["blocks.0.act", "blocks.1.act"]),
        (before("blocks.0"), ["blocks.0"]),
        ("", [""]),
    ],
)
def test_where(net: Net, where: Any, paths: list[str]):
    add_noise(net, where, example=X)
    assert [path.removesuffix("noise").removesuffix(".") for path in noise_layers(net)] == paths


def test_where_matches_whole_paths_with_case(net: Net):
    for where in ("conv1", "FC1", "block", "fc", "locks.0.conv"):
        with pytest.raises(InputError, match="no module of Net"):
            add_noise(net, where, example=X)


def test_a_sequence_names_modules_even_if_they_are_called_like_groups():
    net = nn.Sequential()
    net.add_module("conv", nn.Linear(3, 3))
    net.add_module("linear", nn.ReLU())
    add_noise(net, ["linear"], example=torch.zeros(1, 3))
    assert list(shapes(net)) == ["linear"]


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("neuron", {"blocks.0.conv": (4, 5, 5), "blocks.1.bn": (8, 5, 5), "fc1": (6,)}),
        ("channel", {"blocks.0.conv": (4, 1, 1), "blocks.1.bn": (8, 1, 1), "fc1": (6,)}),
        ("layer", {"blocks.0.conv": (), "blocks.1.bn": (), "fc1": ()}),
    ],
)
@pytest.mark.parametrize("probed", [True, False])
def test_granularity(net: Net, granularity: Any, expected: dict[str, tuple[int, ...]], probed: bool):
    """With "channel" and "layer" the modules' own sizes say as much as an example."""
    example = X if probed or granularity == "neuron" else None
    add_noise(net, list(expected), granularity=granularity, example=example)
    assert shapes(net) == expected
    assert noise_layers(net)["fc1.noise"].is_attached


def test_channel_fits_any_input_size(net: Net):
    add_noise(net, "all", granularity="channel")
    assert net(torch.zeros(3, 3, 9, 7)).shape == (3, 5)


def test_the_noise_is_that_of_its_place_in_the_stream(net: Net):
    """Eq. 1 at every site, to the bit: seed, pass, and layers numbered in the model's order."""
    net.eval()
    add_noise(net, ["blocks.1.bn", "fc1"], init=0.5, example=X, key=7)
    net(X)  # pass 0; the probe was none
    seen: dict[str, Tensor] = {}
    for name in ("blocks.1.bn", "fc1"):
        module = net.get_submodule(name)
        module.register_forward_hook(lambda m, a, y, name=name: seen.update({f"{name} noisy": y}))
        hook = module.register_forward_hook(lambda m, a, y, name=name: seen.update({name: y}))
        module._forward_hooks.move_to_end(hook.id, last=False)  # sees the output before the noise does
    net(X)
    assert torch.equal(seen["blocks.1.bn noisy"], noisy(seen["blocks.1.bn"], 0.5, seed=7, passes=1, layer=0))
    assert torch.equal(seen["fc1 noisy"], noisy(seen["fc1"], 0.5, seed=7, passes=1, layer=1))


def test_before_puts_the_noise_on_the_input():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    add_noise(net, before(nn.ReLU), example=torch.zeros(1, 3))
    x = torch.full((2, 3), -0.1)
    y = net(x)
    assert torch.equal(y, noisy(net[0](x), 1.0).relu())
    assert y.min() >= 0


def test_before_takes_arguments_by_name():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(scale=2, x=x)

    class Inner(nn.Module):
        def forward(self, *, scale: int, x: Tensor) -> Tensor:
            return scale * x

    net = add_noise(Named(), before("inner"), example=torch.zeros(1, 3))
    x = torch.ones(4, 3)
    assert torch.equal(net(x), 2 * noisy(x, 1.0))


def test_a_sequential_has_its_noise_on_its_last_module():
    """Keep noise out of the children of an nn.Sequential, whose length and output would change."""
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU())), nn.Linear(4, 2))
    add_noise(net, ["0", ""], example=torch.zeros(1, 3))
    assert list(shapes(net)) == ["0.1.0", "1"]
    assert (len(net), len(net[0])) == (2, 2)
    x = torch.ones(5, 3)
    hidden = noisy(net[0][0](x).relu(), 1.0)
    assert torch.equal(net(x), noisy(functional.linear(hidden, net[1].weight, net[1].bias), 1.0, layer=1))


def test_before_a_sequential_means_before_its_first_module():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)))
    add_noise(net, before("1"), example=torch.zeros(1, 3))
    assert shapes(net) == {"1.0": (4,)}


def test_init_learn_mean_and_inference(net: Net):
    add_noise(net, "fc1", init=0.25, learn=False, mean=True, at_inference=False, example=X)
    noise = net.fc1.noise
    assert torch.equal(noise.sigma, torch.full((6,), 0.25))
    assert [name for name, _ in noise.named_parameters()] == ["mu"]
    assert not noise.at_inference
    net.eval()
    assert torch.equal(net(X), net(X))


def test_normal_init_comes_from_the_key(net: Net):
    first, same, other = (copy.deepcopy(net) for _ in range(3))
    for model, key in ((first, 3), (same, 3), (other, 4)):
        add_noise(model, "all", init="normal", example=X, key=key)
    sigmas = torch.cat([noise.sigma.flatten() for noise in noise_layers(first).values()])
    assert abs(sigmas.mean()) < 0.1
    assert abs(sigmas.std() - 1) < 0.1
    assert torch.equal(first.fc1.noise.sigma, same.fc1.noise.sigma)
    assert not torch.isclose(first.fc1.noise.sigma, other.fc1.noise.sigma).any()


def test_normal_inits_of_two_calls_differ():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    for path in ("0", "1"):
        add_noise(net, path, init="normal", example=torch.zeros(1, 4))
    assert not torch.isclose(net[0].noise.sigma, net[1].noise.sigma).any()


def test_a_second_call_joins_the_stream_of_the_first(net: Net):
    net.eval()
    add_noise(net, "fc1", init=0.5, example=X, key=7)
    add_noise(net, "conv", granularity="channel", init=2.0, example=X, key=8)
    assert sorted(noise.number for noise in noise_layers(net).values()) == [0, 1, 2, 3, 4]
    assert {id(noise.scope) for noise in noise_layers(net).values()} == {id(net.fc1.noise.scope)}
    seen: list[Tensor] = []
    net.fc1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net.fc1.register_forward_hook(lambda m, args, y: seen.append(y))
    net(X)
    hidden = functional.linear(seen[0], net.fc1.weight, net.fc1.bias)
    assert torch.equal(seen[1], noisy(hidden, 0.5, seed=7))  # layer 0 of pass 0 still
    assert [layer.key[:2].tolist() for layer in noise_layers(net).values()] == [[7, 1]] * 5


@pytest.mark.parametrize("where", ["all", ["blocks.0", "fc10"], before(nn.ReLU), "*", ""])
def test_removal_restores_everything(net: Net, where: Any):
    net.train()
    net.blocks[1].eval()
    before_noise, output = snapshot(net), copy.deepcopy(net).eval()(X)
    if where == "*":
        where = [name for name, module in net.named_modules() if not isinstance(module, nn.ModuleList)]
    add_noise(net, where, example=X)
    assert net.eval()(X).shape == (2, 5)
    assert not torch.equal(net(X), output)
    net.train()
    net.blocks[1].eval()
    assert remove_noise(net) is net
    assert snapshot(net) == before_noise
    assert torch.equal(net.eval()(X), output)


def test_removal_leaves_what_others_hooked(net: Net):
    calls: list[str] = []
    net.fc1.register_forward_hook(lambda *_: calls.append("fc1"))
    net.register_forward_pre_hook(lambda *_: calls.append("net"))
    add_noise(net, "linear", example=X)
    net.fc1.noise.register_forward_hook(lambda *_: calls.append("noise"))
    remove_noise(net)
    calls.clear()
    net.eval()(X)
    assert calls == ["net", "fc1"]


def test_hooks_that_record_outputs_see_the_noise(net: Net):
    """Check hooks from before and after; transformers collects hidden states with such hooks."""
    seen: list[Tensor] = []
    net.fc1.register_forward_hook(lambda module, args, output: seen.append(output))
    add_noise(net.eval(), "fc1", example=X)
    net.fc1.register_forward_hook(lambda module, args, output: seen.append(output))
    seen.clear()
    net(X)
    earlier, later = seen
    assert earlier is later
    with sampling(net, "off"):
        net(X)
    assert not torch.equal(earlier, seen[2])


def test_noise_before_the_model_itself_belongs_to_the_pass_it_is_in():
    model, x = add_noise(nn.Linear(3, 2), before(""), init=0.5, example=torch.ones(1, 3)), torch.ones(2, 3)
    for passes in range(2):
        expected = nn.functional.linear(noisy(x, torch.full((3,), 0.5), passes=passes), model.weight, model.bias)
        assert torch.equal(model(x), expected)
    with sampling(model, "frozen", key=3):
        one = model(x)
    model(x)
    with sampling(model, "frozen", key=3):
        assert torch.equal(model(x), one)


def test_nothing_to_remove(net: Net):
    state = snapshot(net)
    assert remove_noise(net) is net
    assert snapshot(net) == state


def test_existing_keys_class_and_signature_stay(net: Net):
    plain, keys, kind, ids = net.forward, list(net.state_dict()), type(net), [id(p) for p in net.parameters()]
    add_noise(net, "all", example=X)
    noisy_keys = list(net.state_dict())
    assert [name for name in noisy_keys if ".noise." not in name] == keys
    assert type(net) is kind
    assert net.forward == plain
    assert [id(p) for name, p in net.named_parameters() if ".noise." not in name] == ids


def test_the_probe_leaves_no_trace(net: Net):
    """Batch norm, dropout, buffers, modes, and the random states of torch, numpy and Python."""

    class Restless(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("in_place", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            self.in_place.add_(1)
            if not hasattr(self, "made"):
                self.register_buffer("made", torch.zeros(()))
            assert not self.training
            return self.inner(x + torch.rand(()) * np.random.rand() * random.random())

    model = Restless(net.train())
    net.blocks[0].eval()
    states = snapshot(model)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    add_noise(model, "linear", example=X)
    drawn = (torch.rand(()).item(), np.random.rand(), random.random())
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert drawn == (torch.rand(()).item(), np.random.rand(), random.random())
    assert [module.training for module in net.modules() if isinstance(module, Block)] == [False, True]
    remove_noise(model)
    assert snapshot(model) == states
    assert model.calls.item() == model.in_place.item() == 0


def test_the_probe_counts_no_pass_of_noise_that_is_there(net: Net):
    add_noise(net, "fc1", example=X)
    net.eval()(X)
    add_noise(net, "fc10", example=X)
    assert net.fc1.noise.key.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("as_example", [lambda x: (x, x), lambda x: [x, x], lambda x: {"y": x, "x": x}])
def test_examples_of_all_kinds(as_example: Any):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(torch.cat([x, y], 1))

    assert shapes(add_noise(Two(), "all", example=as_example(torch.zeros(4, 3)))) == {"fc": (2,)}


def test_an_example_may_be_any_object():
    class Graph:
        x = torch.zeros(4, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, graph: Graph) -> Tensor:
            return self.fc(graph.x)

    assert shapes(add_noise(Net(), "all", example=Graph())) == {"fc": (2,)}


def test_modules_that_are_never_called_get_no_noise_unless_named(net: Net):
    net.spare = nn.Linear(3, 3)
    add_noise(net, "linear", example=X)
    assert "spare.noise" not in noise_layers(net)
    with pytest.raises(InputError, match="spare is never called"):
        add_noise(net, ["spare"], example=X)


def test_the_channel_axis_of_a_module_without_a_type_is_that_of_the_layer_before():
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), Tokens(), nn.Linear(4, 5), nn.GELU())
    add_noise(net, ["1", "4"], granularity="channel", example=torch.zeros(2, 3, 7))
    assert shapes(net) == {"1": (4, 1), "4": (5,)}


# Without an example: the first batch


def test_the_first_batch_gives_the_shapes(net: Net):
    twin = copy.deepcopy(net)
    add_noise(net, "all", init=0.5, key=3)
    add_noise(twin, "all", init=0.5, key=3, example=X)
    first, second = net.eval()(X), net(X)
    assert shapes(net) == shapes(twin)
    assert torch.equal(first, twin.eval()(X))  # its own pass is noisy already, and pass 0
    assert torch.equal(second, twin(X))
    remove_noise(net), remove_noise(twin)
    assert list(net.state_dict()) == list(twin.state_dict())


def test_the_first_batch_may_come_in_training_mode_and_trains_sigma(net: Net):
    add_noise(net, "all")
    net.train()(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.blocks[0].bn.num_batches_tracked == 1  # by the batch itself, not by the probe


def test_the_first_batch_may_come_without_gradients(net: Net):
    with torch.inference_mode():
        add_noise(net, "all")(X)
    net(X).sum().backward()
    assert all(sigma.grad is not None for sigma in noiseprop.sigmas(net))


@pytest.mark.parametrize(
    "ask",
    [
        noise_layers,
        noiseprop.is_noisy,
        noiseprop.sigmas,
        noiseprop.weights,
        lambda net: noiseprop.reset_noise(net, 0),
        lambda net: sampling(net, "off").__enter__(),
        lambda net: add_noise(net, "linear", example=X),
    ],
)
def test_deferred_noise_has_no_layers_or_sigmas_yet(net: Net, ask: Any):
    add_noise(net, "all")
    with pytest.raises(InputError, match=r"needs the shapes of a first batch; call the model once"):
        ask(net)


def test_deferred_noise_can_be_removed(net: Net):
    state = snapshot(net)
    add_noise(net, "all")
    assert snapshot(net) != state
    remove_noise(net)
    assert snapshot(net) == state


def test_a_first_batch_that_fails_leaves_the_noise_deferred(net: Net):
    add_noise(net, "all")
    state = snapshot(net)
    with pytest.raises(InputError, match="could not be called"):
        net(torch.zeros(2, 7, 5, 5))
    assert snapshot(net) == state
    net(X)
    assert len(noise_layers(net)) == 6


def test_the_probe_changes_no_input_and_takes_sparse_buffers():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("edges", torch.eye(2).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.sparse.mm(self.edges, x.sub_(1)))

    x = torch.ones(2, 3)
    model = add_noise(Graph(), "linear", example=x)
    assert x.eq(1).all()
    assert model.edges.is_sparse
    assert torch.equal(model.edges.to_dense(), torch.eye(2))
    add_noise(remove_noise(model), "linear")(x)  # the first batch: changed once, not twice
    assert x.eq(0).all()
