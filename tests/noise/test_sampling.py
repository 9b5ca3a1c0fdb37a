"""Fresh, off and frozen noise, and K draws that share what comes before the noise."""

import warnings

import pytest
import torch
from torch import nn

from noiseprop import InputError, NeuronNoise, add_noise, reset_noise, sampling

X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network(sites=("conv", "head", "out")):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 3, 3))
    model.add_module("relu", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(48, 7))
    model.add_module("out", nn.Linear(7, 5))
    return add_noise(model, sites, example=X) if sites else model


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = x.flatten(1)[:, :6]
        return self.out(x + self.branch(x))


@pytest.mark.parametrize("sites", [("conv",), ("head", "out"), ("conv", "head", "out")])
def test_k_draws_equal_k_passes_with_equal_keys(sites):
    model = network(sites)
    reset_noise(model, 3)
    separate = torch.stack([model(X) for _ in range(5)])
    after = model(X)
    reset_noise(model, 3)
    with sampling(model, draws=5):
        together = model(X)
    assert together.shape == (5, 4, 5)
    torch.testing.assert_close(together, separate)
    torch.testing.assert_close(model(X), after)  # and the stream stands where K passes leave it


def test_gradients_of_the_mean_equal_those_of_k_passes():
    model = network(("head", "out"))
    gradients = []
    for shared in (False, True):
        reset_noise(model, 3)
        x = X.clone().requires_grad_()
        if shared:
            with sampling(model, draws=5):
                logits = model(x)
        else:
            logits = torch.stack([model(x) for _ in range(5)])
        gradients.append(torch.autograd.grad(logits.logsumexp(-1).mean(), [x, *model.parameters()]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_noise_free_prefix_runs_once():
    model = network(("head", "out"))
    rows = []
    for name in ("conv", "head", "out"):
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: rows.append((name, len(args[0])))
        )
    with sampling(model, draws=5):
        model(X)
        rows.clear()  # the first pass also tries whether sharing is right
        model(X)
    assert rows == [("conv", 4), ("head", 4), ("out", 20)]


def test_repeating_keeps_channels_last():
    model = network(("conv",)).to(memory_format=torch.channels_last)
    seen = []
    model.relu.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with sampling(model, draws=3):
        model(X.contiguous(memory_format=torch.channels_last))
    assert seen[-1].shape == (12, 3, 4, 4)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(seen[-1].var((0, 2, 3)), torch.ones(3), rtol=0.5, atol=0)  # and the noise is there


def test_a_noisy_branch_that_meets_a_noise_free_one_falls_back_and_says_so_once():
    model = add_noise(Residual(), ["branch"], example=X)
    reset_noise(model, 3)
    separate = torch.stack([model(X) for _ in range(5)])
    reset_noise(model, 3)
    with sampling(model, draws=5):
        with pytest.warns(UserWarning, match="noisy branch meets a noise-free one"):
            together = model(X)
        torch.testing.assert_close(together, separate)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model(X).shape == (5, 4, 3)


def test_one_sample_does_not_hide_the_meeting_of_branches():
    model = add_noise(Residual(), ["branch"], example=X)
    with sampling(model, draws=5):
        with pytest.warns(UserWarning, match="noisy branch"):
            assert model(X[:1]).shape == (5, 1, 3)
        assert model(X).shape == (5, 4, 3)


class Graph(nn.Module):
    """Each node receives what its neighbours have; edges name nodes by number, so copies of the nodes have none."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(36, 3)

    def forward(self, x, edges):
        x = self.lin(x.flatten(1))
        return x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])


@pytest.mark.parametrize("edges", [[[0, 1, 3], [1, 2, 0]], [[0, 0, 0], [1, 1, 1]]])
def test_samples_that_depend_on_each_other_get_separate_passes(edges):
    """In the second graph a part of two nodes can be called, but its copies would be without edges."""
    model, edges = add_noise(Graph(), ["lin"], init=1e-3, example=(X, torch.tensor(edges))), torch.tensor(edges)
    reset_noise(model, 2)
    separate = torch.stack([model(X, edges) for _ in range(5)])
    reset_noise(model, 2)
    with sampling(model, draws=5):
        with pytest.warns(UserWarning, match="made by separate passes"):
            together = model(X, edges)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model(X, edges).shape == (5, 4, 3)
    assert torch.equal(together, separate)
    assert int(model.lin.noise.key[1]) == 10
    with sampling(model, "frozen", key=3, draws=4):
        frozen = model(X, edges)
    reset_noise(model, 3)
    assert torch.equal(frozen, torch.stack([model(X, edges) for _ in range(4)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_come_back_as_they_are(value):
    """Whoever asked for them tells the user; the trial of a shared prefix neither fails nor warns."""
    model = add_noise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ["0"], example=torch.zeros(2, 3))
    model[1].weight.data[0, 0] = value
    with sampling(model, draws=3):
        y = model(torch.ones(2, 3))
    assert y.shape == (3, 2, 2)
    assert not y[..., 0].isfinite().any()
    assert y[..., 1].isfinite().all()


def test_the_trial_leaves_torchs_generator_alone():
    model = network(("head", "out")).train()
    state = torch.get_rng_state()
    with sampling(model, draws=3):
        model(X)
    assert torch.equal(torch.get_rng_state(), state)


def test_off_and_frozen():
    model = network()
    plain = network(())
    with sampling(model, "off"):
        torch.testing.assert_close(model(X), plain(X))
    with sampling(model, "frozen", key=4):
        first, second = model(X), model(X)
        assert torch.equal(first, second)
        assert not torch.equal(first[0], model(X[[1, 1, 1, 1]])[0])
    with sampling(model, "frozen", key=5):
        assert not torch.equal(model(X), first)
    reset_noise(model, 4)
    torch.testing.assert_close(model(X), first)  # frozen noise is pass 0 of the seed
    with sampling(model, "frozen", key=4, draws=3):
        assert torch.equal(model(X)[0], first)


def test_off_and_frozen_leave_the_stream_where_it_was():
    model = network()
    reset_noise(model, 1)
    expected = [model(X), model(X)]
    reset_noise(model, 1)
    torch.testing.assert_close(model(X), expected[0])
    with sampling(model, "frozen", key=4):
        model(X)
    torch.testing.assert_close(model(X), expected[1])


def test_noise_that_sleeps_at_inference_neither_warns_nor_hides_what_training_needs():
    model = add_noise(Residual(), ["branch"], at_inference=False, example=X).eval()
    with sampling(model, draws=3), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(model(X), model(X)[:1].expand(3, 4, 3))
    with sampling(model.train(), draws=3), pytest.warns(UserWarning, match="noisy branch"):
        assert not torch.equal(*model(X)[:2])


def test_noise_that_wakes_for_training_is_tried_again():
    """In eval mode the head's noise alone acts, and draws share what is before it; in training mode they cannot."""
    model = add_noise(Residual(), ["branch"], at_inference=False, example=X)
    add_noise(model, ["out"], example=X).eval()
    with sampling(model, draws=3), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(X).shape == (3, 4, 3)
    with sampling(model.train(), draws=3), pytest.warns(UserWarning, match="noisy branch"):
        assert model(X).shape == (3, 4, 3)
    with sampling(model.eval(), draws=3), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(X).shape == (3, 4, 3)


@pytest.mark.parametrize("at_inference", [True, False])
def test_the_mean_stays_when_the_noise_is_off(at_inference):
    model = add_noise(nn.Linear(36, 2), [""], mean=True, at_inference=at_inference, example=X.flatten(1)).eval()
    nn.init.constant_(model.noise.mu, 5.0)
    with sampling(model, "off"):
        torch.testing.assert_close(model(X.flatten(1)), X.flatten(1) @ model.weight.T + model.bias + 5)
    if not at_inference:
        torch.testing.assert_close(model(X.flatten(1)), X.flatten(1) @ model.weight.T + model.bias + 5)


def test_streams_side_by_side_keep_apart_when_reset_or_frozen():
    model = nn.Sequential(NeuronNoise((36,)), NeuronNoise((36,)))
    x = torch.zeros(4, 36)
    seen = []
    for layer in model:
        layer.register_forward_hook(lambda module, args, output: seen.append(output - args[0]))
    reset_noise(model, 3)
    model(x)
    with sampling(model, "frozen", key=3):
        model(x)
    assert not torch.isclose(seen[0], seen[1]).any()
    assert torch.equal(seen[0], seen[2])
    torch.testing.assert_close(seen[1], seen[3])


def test_noise_free_models_repeat_their_row():
    model = network(())
    with sampling(model, draws=3):
        logits = model(X)
    assert logits.shape == (3, 4, 5)
    torch.testing.assert_close(logits, model(X).expand(3, 4, 5))
    noisy = network()
    with sampling(noisy, "off", draws=3):
        torch.testing.assert_close(noisy(X), logits)


def test_blocks_nest_and_restore_also_after_an_exception():
    model = network()
    hooks = len(model._forward_hooks), len(model._forward_pre_hooks)
    with sampling(model, draws=2):
        with sampling(model, draws=3):
            assert model(X).shape == (3, 4, 5)
            with sampling(model, "off"):
                assert model(X).shape == (4, 5)
        assert model(X).shape == (2, 4, 5)
        with pytest.raises(ZeroDivisionError), sampling(model, draws=4):
            raise ZeroDivisionError
        assert model(X).shape == (2, 4, 5)
    assert model(X).shape == (4, 5)
    assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == hooks
    assert model.conv.noise.state.sampling is None


def test_a_wrapped_model_gets_its_draws_at_the_wrapper():
    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    inner = network()
    wrapper = Doubled(inner)
    reset_noise(wrapper, 8)
    separate = torch.stack([wrapper(X) for _ in range(3)])
    reset_noise(wrapper, 8)
    with sampling(wrapper, draws=3):
        torch.testing.assert_close(wrapper(X), separate)


def test_batch_norm_in_training_mode_is_refused():
    model = add_noise(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)), ["1"], example=X)
    with sampling(model, draws=3), pytest.raises(InputError, match="batch norm in training mode"):
        model.train()(X)
    with sampling(model, draws=3):
        assert model.eval()(X).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("mode", "arguments", "sentence"),
    [
        ("loud", {}, "'fresh', 'off' or 'frozen'"),
        ("fresh", {"draws": 0}, "draws=0"),
        ("frozen", {}, "needs a key"),
        ("off", {"key": 3}, "only that"),
        ("fresh", {"draws": 2.5}, "draws=2.5"),
        ("fresh", {"draws": "3"}, "draws='3'"),
        ("frozen", {"key": 1.5}, "got the key 1.5; pass a whole number"),
    ],
)
def test_bad_input_is_named(mode, arguments, sentence):
    model = network()
    hooks = len(model._forward_hooks)
    with pytest.raises(InputError, match=sentence), sampling(model, mode, **arguments):
        pass
    assert len(model._forward_hooks) == hooks


def test_a_reset_wants_a_whole_number():
    with pytest.raises(InputError, match="got the key 'a'; pass a whole number"):
        reset_noise(network(), "a")


def test_a_part_called_by_itself_takes_no_key_of_an_earlier_pass():
    x = torch.ones(2, 3)
    model = add_noise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "linear", example=x)
    model(x)

    def frozen() -> torch.Tensor:
        with sampling(model, "frozen", key=1):
            return model[0](x)

    def after_frozen() -> torch.Tensor:
        with sampling(model, "frozen", key=1):
            model(x)
        return model[0](x)

    def after_reset() -> torch.Tensor:
        reset_noise(model, 0)
        return model[0](x)

    assert torch.equal(frozen(), frozen())
    assert not torch.equal(after_frozen(), after_frozen())
    assert torch.equal(after_reset(), after_reset())
