import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from noiseprop import add_noise, sigmas
from noiseprop.errors import InputError, RunError
from noiseprop.models import mlp
from noiseprop.noise.objectives import AdversarialSigma, EntropyBonus, FixedPower, Floor, Objective, SquareRootBonus
from noiseprop.training import Recipe, train
from noiseprop.training.objective_config import describe_objective, find_objective_name, make_objective
from noiseprop.training.run_config import ObjectiveConfig

RECIPE = Recipe(epochs=4, batch_size=32, lr=1e-2, sigma_lr=3e-2)


def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mlp((36, 8, 3))
    return add_noise(net, where=net.sites["fc"], init=0.5, example=torch.zeros(1, 1, 6, 6), key=0)


def levels(net) -> torch.Tensor:
    return torch.cat([sigma.detach().flatten() for sigma in sigmas(net)])


def test_the_objective_decides_where_sigma_goes(thirds):
    plain, floor, power, entropy = (network() for _ in range(4))
    train(plain, thirds, RECIPE)
    assert float(levels(plain).min()) < 0.4
    train(floor, thirds, RECIPE, objective=Floor(sigmas(floor), 0.4))
    assert float(levels(floor).min()) == pytest.approx(0.4)
    train(power, thirds, RECIPE, objective=FixedPower(sigmas(power)))
    assert float(levels(power).square().sum()) == pytest.approx(11 * 0.25, rel=1e-5)
    assert float(levels(power).std()) > 0.01
    train(entropy, thirds, RECIPE, objective=EntropyBonus(sigmas(entropy), 100.0))
    assert float(levels(entropy).min()) > 0.6


def test_the_plain_objective_changes_no_bit(thirds):
    nets = network(), network()
    train(nets[0], thirds, RECIPE)
    train(nets[1], thirds, RECIPE, objective=Objective())
    assert torch.equal(levels(nets[0]), levels(nets[1]))


class Stop(Exception):  # noqa: N818 - nothing is wrong
    """Raised in the middle of an epoch."""


@pytest.mark.parametrize(("name", "number"), [("floor", 0.45), ("power", None), ("entropy", 0.1), ("square-root", 0.1)])
def test_a_run_with_an_objective_resumes_to_the_same_bits(thirds, tmp_path, name, number):
    make = partial(make_objective, name, number)

    def go(folder, **options):
        net = network()
        return train(net, thirds, RECIPE, folder, objective=make(net), **options)

    def stop(step, total, loss):
        if step > total // 2:
            raise Stop

    go(tmp_path / "whole")
    with pytest.raises(Stop):
        go(tmp_path / "parts", progress=stop)
    go(tmp_path / "parts", resume=True)
    a, b = (load_file(tmp_path / run / "state.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    plain = network()
    train(plain, thirds, RECIPE)
    assert not torch.equal(a["model.fc1.noise.sigma"], plain.fc1.noise.sigma)


def test_the_objective_is_kept_and_another_one_refused(thirds, tmp_path):
    net = network()
    bonus = SquareRootBonus(sigmas(net), 0.02, floor=0.3)
    train(net, thirds, RECIPE, tmp_path / "run", objective=bonus)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["objective"]
    assert kept == {"name": "SquareRootBonus", "numbers": {"weight": 0.02, "tau": 1.0, "floor": 0.3}}
    more = replace(RECIPE, epochs=5)
    train(net, thirds, more, tmp_path / "run", objective=bonus, resume=True)  # a used one is the same one
    other = SquareRootBonus(sigmas(net), 0.03, floor=0.3)
    with pytest.raises(RunError, match=r"objective.numbers.weight = 0.02 there and 0.03 now"):
        train(net, thirds, more, tmp_path / "run", objective=other, resume=True)
    with pytest.raises(RunError, match=r"objective.name = 'SquareRootBonus' there and None now"):
        train(net, thirds, more, tmp_path / "run", resume=True)


def test_an_adversarial_objective_is_refused_before_anything_is_written(thirds, tmp_path):
    net = network()
    with pytest.raises(InputError, match="train has no adversarial loss"):
        train(net, thirds, RECIPE, tmp_path / "run", objective=AdversarialSigma(net))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "number", "kept"),
    [
        ("floor", 0.25, ObjectiveConfig("Floor", {"floor": 0.25})),
        ("power", 3.0, ObjectiveConfig("FixedPower", {"power": 3.0})),
        ("power", None, ObjectiveConfig("FixedPower", {"power": 2.75})),
        ("entropy", 0.1, ObjectiveConfig("EntropyBonus", {"weight": 0.1})),
        ("square-root", None, ObjectiveConfig("SquareRootBonus", {"weight": 1e-4, "tau": 1.0, "floor": 0.01})),
    ],
)
def test_names_lead_to_objectives_and_back(name, number, kept):
    made = make_objective(name, number, network())
    assert describe_objective(made) == kept
    again = make_objective(*find_objective_name(describe_objective(made)), network())
    assert describe_objective(again) == kept


def test_a_missing_number_and_an_objective_without_a_name_are_told():
    with pytest.raises(InputError, match="the objective floor needs a number: floor; give one above 0"):
        make_objective("floor", None, network())
    with pytest.raises(InputError, match="WeightCovarianceAlignment has no name for commands; resume"):
        find_objective_name(ObjectiveConfig("WeightCovarianceAlignment", {"weight": 1.0}))
    with pytest.raises(InputError, match="got no noise levels"):
        make_objective("floor", 0.1, mlp((36, 3)))
