import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.errors import InputError
from noiseprop.models.registry import build
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.noise.sampling import sampling
from noiseprop.noise.sigma_adam import sigmas, weights
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.released_code import build_row, released_lbfgs
from noiseprop.paper.specs import (
    DEPARTURES,
    PROTOCOLS,
    TABLES,
    Protocol,
    Row,
    choose_protocol,
    choose_recipe,
    choose_settings,
)

MLPN = Row("MLPN")
DECAY = 1e-4


def only(*names: str) -> Protocol:
    return choose_protocol("paper", names)


def made(row: Row, chosen: Protocol, seed: int = 0) -> torch.nn.Module:
    return build_row(row, chosen, seed=seed, weight_decay=DECAY)


def digits(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 28, 28, generator=generator), torch.randint(10, (count,), generator=generator)


def parameter(layer: torch.nn.Module) -> torch.nn.Parameter:
    """Sigma as an optimizer sees it."""
    (found,) = [p for name, p in layer.named_parameters() if "sigma" in name]
    return found


def test_the_paper_departs_in_nothing_and_the_released_code_in_everything():
    assert PROTOCOLS["paper"].departures == frozenset()
    assert PROTOCOLS["released-code"].departures == set(DEPARTURES)
    assert choose_protocol("released-code", ["silent-plus"]).departures == set(DEPARTURES) - {"silent-plus"}
    assert choose_protocol("paper", ["sigma-start", "gradient-sign"]).name == "paper-with-gradient-sign-sigma-start"
    with pytest.raises(InputError, match="'sgn' is not a departure of the released code; choose from gradient-sign, "):
        choose_protocol("paper", ["sgn"])
    with pytest.raises(InputError, match="'papers' is not a protocol; choose one of paper, released-code"):
        choose_protocol("papers")


def test_rows_are_the_papers():
    names = [row.name for row in TABLES["table3"]]
    assert names == ["MLP, ReLU", "MLP, Sigmoid", "MLP+, ReLU", "MLP+, Sigmoid", "MLPN, ReLU", "MLPN, Sigmoid"]
    assert [row.slug for row in TABLES["table4"]] == ["cnn", "cnn-mlpplus", "cnn-aplus", "cnn-mlpn", "cnn-an"]


def test_under_paper_a_network_is_the_one_that_build_makes():
    for row in (*TABLES["table3"], *TABLES["table4"]):
        ours, theirs = made(row, PROTOCOLS["paper"], 3), build(row.model, activation=row.activation, seed=3)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert len(sigmas(ours)) == len(sigmas(theirs))


@pytest.mark.parametrize("adam", [False, True])
def test_gradient_sign_is_the_released_layers_gradient(adam):
    """The code keeps the noise z = |sigma| eps of the pass and returns the sum over the batch of g z / |sigma|."""
    model = made(MLPN, only("gradient-sign", "sigma-start", *(["sigma-adam"] if adam else [])))
    x, y = digits()
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str, site: torch.nn.Module) -> None:
        noise = site.noise

        def hook(_: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
            seen[f"{name} z"] = (out - args[0]).detach()
            out.register_hook(lambda g: seen.update({f"{name} g": g}))

        noise.register_forward_hook(hook)

    for name in ("fc1", "fc2", "fc3"):
        watch(name, model.get_submodule(name))
    cross_entropy(model(x), y).backward()
    negative = 0
    for path, layer in noise_layers(model).items():
        name = path.removesuffix(".noise")
        sigma = parameter(layer)
        released = (seen[f"{name} g"] * seen[f"{name} z"]).sum(0) / sigma.detach().abs()
        decay = DECAY * sigma.detach() if adam else 0  # taken away here, and added again by Adam
        torch.testing.assert_close(sigma.grad, released - decay, rtol=1e-3, atol=1e-6)
        negative += int((sigma < 0).sum())
    assert negative > 50  # where the code's gradient and Eq. 3's have opposite signs


def test_the_exact_gradient_is_another_one_where_sigma_is_negative():
    x, y = digits()
    gradients: list[torch.Tensor] = []
    for names in (["sigma-start"], ["sigma-start", "gradient-sign"]):
        model = made(MLPN, only(*names))
        cross_entropy(model(x), y).backward()
        gradients.append(model.fc1.noise.sigma.grad)
    sign = model.fc1.noise.sigma.detach().sign()
    assert torch.equal(gradients[1], gradients[0] * sign)
    assert not torch.equal(gradients[1], gradients[0])


@pytest.mark.parametrize(("adam", "decay"), list(itertools.product([False, True], repeat=2)))
def test_sigmas_optimizer_and_decay_are_two_switches(adam, decay):
    """One step of `train`'s optimizers moves sigma as an optimizer of its own with these settings would."""
    from noiseprop.training.loop import make_optimizers

    names = [*(["sigma-adam"] if adam else []), *(["sigma-decay"] if decay else [])]
    model = made(MLPN, only(*names))
    assert len(sigmas(model)) == (0 if adam else 3)
    x, y = digits()
    reset_noise(model, 5)
    cross_entropy(model(x), y).backward()
    exact = build("MLPN")
    reset_noise(exact, 5)
    cross_entropy(exact(x), y).backward()
    reference = [layer.sigma.detach().clone().requires_grad_() for layer in noise_layers(exact).values()]
    for sigma, layer in zip(reference, noise_layers(exact).values(), strict=True):
        sigma.grad = layer.sigma.grad + DECAY * sigma.detach() * decay
    if adam:
        torch.optim.Adam(reference, lr=1e-3).step()
    else:
        for sigma in reference:  # the first step of Eq. 7
            sigma.data = (sigma.data - 1e-3 * sigma.grad / (sigma.grad**2 + 1e-8).sqrt()).abs()
    for optimizer in make_optimizers(model, choose_recipe(PROTOCOLS["paper"], "mnist")).values():
        optimizer.step()
    for sigma, layer in zip(reference, noise_layers(model).values(), strict=True):
        torch.testing.assert_close(layer.sigma.detach(), sigma.detach(), rtol=0, atol=2e-6)
        assert not torch.allclose(layer.sigma.detach(), torch.ones(()), rtol=0, atol=1e-4)


def test_sigma_adam_counts_sigma_among_the_weights_and_changes_nothing_else():
    model, paper = made(MLPN, only("sigma-adam")), made(MLPN, PROTOCOLS["paper"])
    assert len(weights(model)) == len(weights(paper)) + 3
    x, _ = digits()
    assert torch.equal(model(x), paper(x))


def test_starts():
    model = made(Row("CNN-AN"), only("sigma-start", "linear-start", "conv-mean"))
    layers = noise_layers(model)
    assert layers["fc1.noise"].mu is None
    assert layers["conv1.noise"].mu.shape == (32, 28, 28)
    for path, size in {"conv1.noise": (32, 28, 28), "conv2.noise": (64, 14, 14)}.items():
        expected = (2 / ((size[0] + size[1]) * size[2])) ** 0.5  # Xavier, as torch counts fans of that shape
        for start in (layers[path].sigma, layers[path].mu):
            assert abs(float(start.detach().std()) / expected - 1) < 0.03
    assert abs(float(layers["fc1.noise"].sigma.detach().std()) - 1) < 0.2
    assert abs(float(model.fc1.bias.detach().std()) - 1) < 0.2
    assert abs(float(model.fc1.weight.detach().std()) / (2 / (3136 + 128)) ** 0.5 - 1) < 0.03
    again = made(Row("CNN-AN"), only("sigma-start", "linear-start", "conv-mean"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    fixed, plain = made(Row("MLP+"), only("linear-start")), made(Row("MLP+"), PROTOCOLS["paper"])
    assert torch.equal(fixed.fc1.bias, plain.fc1.bias)  # its layers are torch's own in the code


def test_fixed_sigmoid_and_silent_plus():
    sigmoid = Row("MLPN", "sigmoid")
    assert len(sigmas(made(sigmoid, PROTOCOLS["paper"]))) == 3
    fixed = made(sigmoid, only("fixed-sigmoid"))
    assert not sigmas(fixed)
    assert all(torch.equal(layer.sigma, torch.ones_like(layer.sigma)) for layer in noise_layers(fixed).values())
    x, _ = digits()
    for row, names, silent in (
        (sigmoid, ["fixed-sigmoid"], False),
        (sigmoid, ["fixed-sigmoid", "silent-plus"], True),
        (Row("MLP+"), ["silent-plus"], True),
        (MLPN, ["silent-plus"], False),
    ):
        model = made(row, only(*names))
        assert not torch.equal(model(x), model(x))  # in training
        model.eval()
        assert torch.equal(model(x), model(x)) == silent


def test_settings_of_training_and_attacks():
    assert choose_recipe(PROTOCOLS["paper"], "mnist").epochs == 30
    assert choose_recipe(only("early-stopping"), "mnist").epochs == 10
    assert choose_recipe(only("early-stopping"), "mnist", epochs=3).epochs == 3
    assert choose_settings(PROTOCOLS["paper"], "mnist").attack_draws == (1, 20)
    assert choose_settings(only("single-draw"), "mnist").attack_draws == (1,)
    table4 = choose_settings(PROTOCOLS["paper"], "mnist", "table4")
    assert table4 == replace(choose_settings(PROTOCOLS["paper"], "mnist"), batch_size=256)


def test_batch_lbfgs_is_one_call_of_torchs_optimizer_for_128_images():
    model = build("MLP", seed=2).eval()
    x, y = digits(130)
    x_adv = released_lbfgs(model, x, y, step=0.5, steps=10)
    assert all(p.grad is None for p in model.parameters())
    expected: list[torch.Tensor] = []
    for rows in (slice(0, 128), slice(128, 130)):
        z = x[rows].clone().requires_grad_()
        optimizer = torch.optim.LBFGS([z], lr=0.5, max_iter=10)

        def closure(z=z, rows=rows, optimizer=optimizer):
            optimizer.zero_grad()
            loss = -cross_entropy(model(z), y[rows])
            loss.backward()
            return loss

        optimizer.step(closure)
        expected.append(z.detach().clamp(0, 1))
    assert torch.equal(x_adv, torch.cat(expected))
    assert not torch.allclose(x_adv[128:], released_lbfgs(model, x[120:], y[120:], step=0.5, steps=10)[8:])
    with torch.no_grad():
        assert cross_entropy(model(x_adv), y) > cross_entropy(model(x), y)


@pytest.mark.filterwarnings("error")
def test_batch_lbfgs_on_random_and_silent_networks():
    x, y = digits(4)
    noisy = build("MLP+").eval()
    reset_noise(noisy, 1)
    first = released_lbfgs(noisy, x, y, step=0.5, steps=3)
    assert not torch.equal(first, released_lbfgs(noisy, x, y, step=0.5, steps=3))
    assert released_lbfgs(noisy, x, y, step=0.5, steps=3, draws=4).shape == x.shape
    silent = build("MLP+", at_inference=False).eval()
    with sampling(noisy, "off"):
        off = released_lbfgs(noisy, x, y, step=0.5, steps=3)
    assert torch.equal(off, released_lbfgs(silent, x, y, step=0.5, steps=3, draws=4))


def test_batch_lbfgs_over_several_draws_climbs_their_mean_loss():
    x, y = digits(4)
    noisy = build("MLP+").eval()
    reset_noise(noisy, 1)
    x_adv = released_lbfgs(noisy, x, y, step=0.5, steps=3, draws=4)
    reset_noise(noisy, 1)
    z = x.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], lr=0.5, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = -torch.stack([cross_entropy(logits, y) for logits in noisy(z)]).mean()
        loss.backward()
        return loss

    with prepare_for_attack(noisy), sampling(noisy, draws=4):
        optimizer.step(closure)
    torch.testing.assert_close(x_adv, z.detach().clamp(0, 1), rtol=1e-4, atol=1e-5)
