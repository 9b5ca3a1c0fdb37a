"""Passes, calls and layers: which key a call of a noise layer gets."""

import copy
import os
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from noiseprop import NeuronNoise, NoisepropError, add_noise, reset_noise, sampling
from noiseprop.noise.kernels.philox import standard_normal
from noiseprop.noise.stream import find_sources, noise_of

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return add_noise(model, ["0", "2"], example=X, key=seed)


def test_a_pass_draws_the_stream_of_its_documented_key():
    model = network(seed=-9)
    for module in (model[0], model[2]):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    for number in range(3):
        expected = standard_normal(torch.tensor([-9, number, 1, 0, 0]), 1, 4, 3)
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)


def test_equal_rows_differ_passes_differ_and_a_reset_repeats():
    model = network()
    rows = X[:1].expand(4, 6)
    first, second = model(rows), model(rows)
    assert first.unique(dim=0).shape[0] == 4
    assert not torch.isclose(first, second).any()
    reset_noise(model, 0)
    assert torch.equal(model(rows), first)
    reset_noise(model, 1)
    assert not torch.isclose(model(rows), first).any()


def test_pieces_of_a_batch_have_the_noise_of_the_whole():
    model = add_noise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ["0", "1"], example=torch.zeros(1, 3), key=3)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    reset_noise(model, 1)
    whole, after = model(x), model(x)
    reset_noise(model, 1)
    with noise_of(model, 7):
        last = model(x[7:])
    with noise_of(model, 2):
        torch.testing.assert_close(model(x[2:4]), whole[2:4])
        with noise_of(model, 3):
            torch.testing.assert_close(model(x[5:7]), after[5:7])
    torch.testing.assert_close(last, whole[7:])
    with pytest.raises(ZeroDivisionError), noise_of(model, 1):
        raise ZeroDivisionError
    torch.testing.assert_close(model(x), whole)
    torch.testing.assert_close(model(x), after)


def test_eval_keeps_the_noise_unless_asked():
    model = network().eval()
    assert not torch.equal(model(X), model(X))
    for layer in (model[0].noise, model[2].noise):
        layer.at_inference = False
    assert torch.equal(model(X), model(X))
    model.train()
    assert not torch.equal(model(X), model(X))


def test_the_state_dict_carries_the_stream_on():
    model, other = network(), network(seed=5)
    model(X)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(X), other(X))
    assert [k for k in model.state_dict() if k.endswith("key")] == ["0.noise.key", "2.noise.key"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_streams_of_their_own_that_go_on_alike(duplicate):
    model = network()
    model(X)
    other = duplicate(model)
    assert torch.equal(model(X), other(X))
    model(X)
    assert find_sources(model)[0].key is not find_sources(other)[0].key
    assert other[2].noise.scope is other[0].noise.scope
    assert other[2].noise.scope is not model[2].noise.scope
    assert not torch.equal(model(X), other(X))


def test_noise_consumes_no_torch_randomness():
    model = network()
    state = torch.get_rng_state()
    model(X).sum().backward()
    with torch.no_grad():
        model.train()(X)
    with torch.inference_mode():
        model(X)
    with torch.no_grad(), sampling(model.eval(), draws=3):
        model(X)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_alone_counts_its_own_calls():
    torch.manual_seed(3)
    a, b = NeuronNoise((6,)), NeuronNoise((6,))
    first, second = a(X), a(X)
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first, b(X)).any()  # another layer, another seed
    torch.manual_seed(3)
    again = NeuronNoise((6,))
    assert torch.equal(again(X), first)


class Looped(nn.Module):
    """One linear layer, called three times in a pass."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.drop, self.how = nn.Linear(6, 6), nn.Dropout(0.5), how

    def block(self, x):
        return torch.tanh(self.drop(self.linear(x)))

    def forward(self, x):
        for _ in range(3):
            x = self.block(x) if self.how is None else checkpoint(self.block, x, use_reentrant=self.how == "reentrant")
        return x


def test_calls_within_a_pass_draw_different_noise():
    model = add_noise(Looped(None), ["linear"], example=X)
    seen = []
    model.linear.noise.register_forward_hook(lambda module, args, output: seen.append(output - args[0]))
    model(X)
    assert not any(torch.isclose(seen[i], seen[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_a_recomputed_block_sees_its_own_noise_again(how):
    """Two passes before one backward, three checkpointed calls of one layer in each."""
    torch.manual_seed(0)
    plain = add_noise(Looped(None), ["linear"], example=X)
    recomputed = copy.deepcopy(plain)
    recomputed.how = how
    gradients = []
    for model in (plain, recomputed):
        torch.manual_seed(1)
        model.drop.p = 0.0  # checkpointed blocks draw a name from torch's generator, which would shift the masks
        x = X.clone().requires_grad_()
        (model(x).sum() + model(2 * x).pow(2).sum()).backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_a_reentrant_block_in_eval_mode_sees_its_own_noise_again():
    model, seen = add_noise(Looped(None), ["linear"], example=X).eval(), []
    model.how = "reentrant"
    model.linear.noise.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    model(X.clone().requires_grad_()).sum().backward()
    assert len(seen) == 6
    for forward, backward in zip(seen[:3], reversed(seen[3:]), strict=True):
        assert torch.equal(forward, backward)
    assert not torch.equal(seen[0], seen[1])


def test_dropout_inside_a_recomputed_block_is_repeated_too():
    torch.manual_seed(0)
    model = add_noise(Looped("not reentrant"), ["linear"], example=X)
    x = X.clone().requires_grad_()
    outputs = []
    model.linear.noise.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    model(x).sum().backward()
    forward, backward = outputs[:3], outputs[3:]
    assert len(backward) == 3
    for a, b in zip(forward, reversed(backward), strict=True):
        assert torch.equal(a, b)


def test_a_recomputation_without_its_random_state_is_refused():
    class Careless(Looped):
        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False, preserve_rng_state=False)

    model = add_noise(Careless(None), ["linear"], example=X)
    with pytest.raises(NoisepropError, match="preserve_rng_state=True"):
        model(X.clone().requires_grad_()).sum().backward()


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs g++; .ci/run installs it"
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own
def test_a_compiled_model_draws_the_same_noise_and_compiles_once():
    from torch._dynamo.utils import counters

    model = network()
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(4):
        ours, theirs = compiled(X), eager(X)
        torch.testing.assert_close(ours, theirs)
        ours.sum().backward()
        theirs.sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
