"""The released code's departures in the ResNets, each against its own reference."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from noiseprop import noise_layers, sampling
from noiseprop.data import Dataset
from noiseprop.errors import InputError
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.scoring import derive_noise_key
from noiseprop.evaluation.settings import CONDITIONS, Settings
from noiseprop.models.registry import build
from noiseprop.noise.sigma_adam import sigmas, weights
from noiseprop.noise.stream import find_sources
from noiseprop.paper.released_code import (
    add_released_attacks,
    build_row,
    list_replaced_conditions,
    make_released_attacks,
    model_options,
)
from noiseprop.paper.specs import (
    DEPARTURES,
    PROTOCOLS,
    RESNET_DEPARTURES,
    TABLES,
    Protocol,
    Row,
    choose_protocol,
    list_departures,
)

pytestmark = pytest.mark.usefixtures("small_resnets")
SETTINGS = Settings(
    fgsm_eps=0.1,
    pgd_eps=8 / 255,
    pgd_step=2 / 255,
    pgd_steps=5,
    lbfgs_step=0.05,
    lbfgs_steps=4,
    attack_images=12,
    trust_images=4,
    vote_draws=2,
    attack_draws=(1,),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def only(*names: str) -> Protocol:
    return choose_protocol("paper", names, "table5")


def made(name: str, chosen: Protocol, seed: int = 0) -> nn.Module:
    return build_row(Row(name), chosen, seed=seed, weight_decay=1e-4)


def pixels(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    whole = torch.randint(0, 256, (count, 3, 32, 32), generator=generator)
    return whole.float() / 255, torch.randint(10, (count,), generator=generator)


def test_each_table_has_its_departures():
    assert list_departures("table3") == list_departures("table4") == DEPARTURES
    assert list_departures("table5") == RESNET_DEPARTURES
    assert set(RESNET_DEPARTURES) - set(list_departures("table6")) == {"plain-last-linear", "normalised-attacks"}
    assert choose_protocol("released-code", table="table6").departures == set(list_departures("table6"))
    assert choose_protocol("released-code").departures == set(DEPARTURES) == PROTOCOLS["released-code"].departures
    assert choose_protocol("paper", ["after-addition"], "table5").name == "paper-with-after-addition"
    assert "silent-plus" not in choose_protocol("released-code", ["silent-plus"], "table6")
    with pytest.raises(
        InputError, match="'early-stopping' is not a departure of the released code; choose from gradient-"
    ):
        choose_protocol("paper", ["early-stopping"], "table5")


def test_under_paper_a_network_is_the_one_that_build_makes():
    for row in TABLES["table5"]:
        ours, theirs = build_row(row, only(), seed=3, weight_decay=1e-4), build(row.model, seed=3)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert model_options(row, only(), seed=3).keys() == {"name", "activation", "seed", "at_inference"}
    assert model_options(TABLES["table6"][0], only(), seed=0, classes=3)["classes"] == 3


def test_after_addition_moves_the_noise():
    paper, code = made("ResNet18-AN", only()), made("ResNet18-AN", only("after-addition"))
    blocks = [f"layer{i}.0" for i in (1, 2, 3, 4)]
    head = [f"head.fc{i}.noise" for i in (1, 2, 3)]
    assert list(noise_layers(paper)) == [*(f"{block}.conv2.noise" for block in blocks), *head]
    assert list(noise_layers(code)) == ["bn1.noise", *(f"{block}.sum.noise" for block in blocks), *head]
    assert list(noise_layers(made("ResNet18-MLPN", only("after-addition")))) == head


def test_silent_learned_drops_noise_and_mean_at_inference():
    names = ("silent-learned", "conv-mean", "sigma-start", "after-addition")
    model, x = made("ResNet18-AN", only(*names)), pixels()[0]
    plain = made("ResNet18", only())
    state = {name: value for name, value in model.state_dict().items() if ".noise" not in name}
    plain.load_state_dict(state)
    assert float(model.bn1.noise.mu.detach().abs().max()) > 0
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
        kept = made("ResNet18-AN", only("silent-learned", "sigma-start")).eval()
        assert torch.equal(kept(x), kept(x))
        heard = made("ResNet18-AN", only("conv-mean", "after-addition")).eval()
        assert not torch.equal(heard(x), heard(x))
        with sampling(heard, "off"):  # under `paper` the mean is a bias, and stays
            assert not torch.allclose(heard(x), plain(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    model(x).sum().backward()
    assert model.bn1.noise.mu.grad.abs().sum() > 0
    assert model.bn1.noise.sigma.grad.abs().sum() > 0


def test_starts_are_xavier_on_maps_and_normal_on_linears():
    model = made("ResNet18-AN", only("after-addition", "sigma-start", "conv-mean", "linear-start"))
    C, H, W = model.bn1.noise.sigma.shape
    expected = (2 / ((C + H) * W)) ** 0.5  # torch counts fans of that shape so
    for start in (model.bn1.noise.sigma, model.bn1.noise.mu):
        assert abs(float(start.detach().std()) / expected - 1) < 0.05
    assert model.head.fc1.noise.mu is None
    levels = torch.cat([model.get_submodule(f"head.fc{i}").noise.sigma.detach() for i in (1, 2, 3)])
    assert 0.5 < float(levels.std()) < 1.5
    assert float(levels.min()) < 0


def test_plain_last_linear_silences_fixed_noise_of_the_last_layer_alone():
    for name in ("ResNet18-MLP+", "ResNet18-A+"):
        layers = noise_layers(made(name, only("plain-last-linear")))
        values = {path: layer.sigma.unique().tolist() for path, layer in layers.items()}
        assert values.pop("head.fc3.noise") == [0.0]
        assert set(map(tuple, values.values())) == {(1.0,)}
    learned = made("ResNet18-AN", only("plain-last-linear"))
    assert float(learned.head.fc3.noise.sigma.detach().min()) == 1.0


def test_sigma_adam_counts_sigma_among_the_weights():
    model = made("ResNet18-AN", only("sigma-adam", "sigma-decay", "after-addition"))
    assert len(sigmas(model)) == 0
    assert len(weights(model)) == len(weights(made("ResNet18", only()))) + 8


@pytest.fixture(scope="module")
def normalised(small_resnets):
    """The attacks on normalised images, and a network that answers differently to every pixel."""
    torch.manual_seed(0)
    model = build("ResNet18", seed=1).eval()
    return make_released_attacks(only("normalised-attacks"), SETTINGS), model


def steps_on_z(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float, step: float, steps: int) -> torch.Tensor:
    """The released code's climb, one image at a time, on the network without its normalisation."""
    out = torch.empty_like(x)
    for i in range(len(x)):
        z = start = (x[i : i + 1] - model.mean) / model.std
        for _ in range(steps):
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(z * model.std + model.mean), y[i : i + 1]), z)
            z = torch.clamp(start + torch.clamp(z + step * gradient.sign() - start, -eps, eps), 0, 1)
        out[i] = (z * model.std + model.mean)[0].detach()
    return out


@pytest.mark.parametrize(("name", "numbers"), [("fgsm", (0.1, 0.1, 1)), ("pgd", (8 / 255, 2 / 255, 5))])
def test_normalised_fgsm_and_pgd_are_the_codes(name, numbers, normalised):
    attacks, model = normalised
    x, y = pixels(3)
    x_adv = attacks[name](model, x, y, 1)
    expected = steps_on_z(model, x, y, *numbers)
    agree = ((x_adv - expected).abs() < 1e-5).float().mean()
    assert agree > 0.995  # but for signs of gradients that are zero up to rounding
    assert float(x_adv.min()) >= float(model.mean.min()) - 1e-6
    dark = x < model.mean - 0.1
    assert torch.allclose(x_adv[dark], model.mean.expand_as(x)[dark], atol=0.1 * 0.27)  # the clamp took them away
    assert float((x_adv - x).abs().max()) > 0.2  # far beyond eps, by the clamp alone


def test_normalised_lbfgs_is_torchs_on_z(normalised):
    _, model = normalised
    x, y = pixels(4)
    strong = replace(SETTINGS, lbfgs_step=100.0)
    x_adv = make_released_attacks(only("normalised-attacks", "batch-lbfgs"), strong)["lbfgs"](model, x, y, 1)
    z = ((x - model.mean) / model.std).requires_grad_()
    optimizer = torch.optim.LBFGS([z], lr=100.0, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = -cross_entropy(model(z * model.std + model.mean), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = z.detach().clamp(0, 1) * model.std + model.mean
    torch.testing.assert_close(x_adv, expected, rtol=1e-4, atol=1e-5)
    alone = make_released_attacks(only("normalised-attacks"), strong)["lbfgs"](model, x, y, 1)
    assert not torch.allclose(alone, x_adv, atol=1e-5)  # there each image has an optimizer of its own


def test_which_attacks_are_replaced():
    assert make_released_attacks(only(), SETTINGS) == {}
    batch = make_released_attacks(only("batch-lbfgs"), SETTINGS)
    assert list_replaced_conditions(batch) == {"lbfgs", "lbfgs-transfer"}
    every = make_released_attacks(only("normalised-attacks"), SETTINGS)
    assert list_replaced_conditions(every) == {"fgsm", "lbfgs", "pgd", "fgsm-transfer", "lbfgs-transfer"}


def test_an_evaluation_is_completed_by_them(normalised):
    attacks, model = normalised
    x, y = pixels(14)
    test = Dataset("cifar10", (x * 255).round().to(torch.uint8), y, tuple("0123456789"))
    surrogate = build("ResNet18-surrogate", seed=2)
    rest = tuple(c for c in CONDITIONS if c in ("clean", "contrast"))
    asked = replace(SETTINGS, conditions=(*rest, *sorted(list_replaced_conditions(attacks))))
    first = evaluate(model, test, settings=replace(asked, conditions=rest))
    whole = add_released_attacks(first, model, surrogate, test, asked, attacks)
    assert whole.settings == asked
    found = {m.condition: m for m in whole.measurements if m.state == "off"}
    assert set(found) == set(asked.conditions)
    with torch.no_grad():
        for condition, attacked in (("pgd", model), ("fgsm-transfer", surrogate.eval())):
            x_adv = attacks[condition.removesuffix("-transfer")](attacked, x[:12], y[:12], 1)
            right = (model(x_adv).argmax(1) == y[:12]).tolist()
            assert found[condition].correct.tolist() == right


def test_they_meet_the_noise_that_is_said_from_a_key_of_their_own():
    model, surrogate = made("ResNet18-MLPN", only()), build("ResNet18-surrogate", seed=2)
    x, y = pixels(14)
    test = Dataset("cifar10", (x * 255).round().to(torch.uint8), y, tuple("0123456789"))
    asked = replace(SETTINGS, conditions=("clean", "lbfgs", "lbfgs-transfer"))
    seen: list[object] = []

    def attack(attacked: nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> torch.Tensor:
        layers = find_sources(attacked)
        off = [layer.state.sampling is not None and layer.state.sampling.off for layer in layers]
        seen.append((attacked, off, [layer.key[:2].tolist() for layer in layers if not any(off)]))
        return x

    first = evaluate(model, test, settings=replace(asked, conditions=("clean",)))
    whole = add_released_attacks(first, model, surrogate, test, asked, {"lbfgs": attack})
    key = derive_noise_key(0, "lbfgs", 1, "attack")
    n = len(find_sources(model))
    assert n == 3  # the Linear layers of the head
    assert seen == [(model, [True] * n, []), (model, [False] * n, [[key, 0]] * n), (surrogate, [], [])]
    assert {m.condition for m in whole.measurements} == set(asked.conditions)
