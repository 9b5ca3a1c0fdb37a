"""Evaluations of networks unlike the examples: with custom train(), normalisation in place, and NumPy numbers."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.foreign_networks import CLASSES, NETWORKS, Normalised
from tests.attacks.test_foreign_networks import assert_left_as_found, snapshot
from torch import nn

from noiseprop.attacks import pgd
from noiseprop.data import Dataset
from noiseprop.errors import InputError
from noiseprop.evaluation import Settings, compare, evaluate, mean_std, paired, run_sanity_checks, welch, wilson
from noiseprop.evaluation.serialization import format_evaluation
from noiseprop.noise.attach.add_noise import add_noise

pytestmark = pytest.mark.filterwarnings("ignore:.*a noisy branch meets a noise-free one")  # in residual blocks

QUICK = Settings(
    conditions=("clean", "fgsm", "pgd", "fgsm-transfer", "contrast"),
    attack_images=12,
    trust_images=8,
    attack_draws=(1, 3),
    vote_draws=4,
    pgd_steps=2,
    lbfgs_steps=2,
    batch_size=16,
)


@pytest.fixture(params=NETWORKS)
def make(request):
    return NETWORKS[request.param]


def dataset(count: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).to(torch.uint8)
    return Dataset("noise", pixels, torch.randint(0, CLASSES, (count,), generator=generator), tuple("abcd"))


def noisy(model: nn.Module) -> nn.Module:
    *_, head = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return add_noise(model, [head], init=0.3, example=torch.zeros(1, 3, 8, 8), key=1)


def in_place_and_noisy(make) -> nn.Module:
    return noisy(Normalised(make(), in_place=True))


@pytest.mark.parametrize("noise", [False, True], ids=["plain", "noisy"])
def test_a_network_that_changes_its_input_in_place_is_evaluated_like_its_twin(make, noise):
    texts = []
    for in_place in (False, True):
        model, surrogate = (Normalised(make(), in_place=in_place) for _ in range(2))
        texts.append(
            format_evaluation(
                evaluate(noisy(model) if noise else model, dataset(), settings=QUICK, surrogate=surrogate)
            )
        )
    assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("noise", [False, True], ids=["plain", "noisy"])
def test_weights_flags_and_modes_are_left_as_found(make, mode, noise):
    model, surrogate = (make().train(mode) for _ in range(2))
    if noise:
        noisy(model)
    twin, before, before_surrogate = copy.deepcopy(model), snapshot(model), snapshot(surrogate)
    evaluate(model, dataset(), settings=QUICK, surrogate=surrogate)
    assert_left_as_found(model, before)
    assert_left_as_found(surrogate, before_surrogate)
    gradients = []
    for net in (model, twin):
        torch.manual_seed(0)
        nn.functional.cross_entropy(
            net(dataset().images[:4].float() / 255), torch.zeros(4, dtype=torch.int64)
        ).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_modes_are_restored_after_an_error(make):
    model = make().train()
    before = snapshot(model)
    with pytest.raises(InputError, match="classes of noise"):
        evaluate(model, replace(dataset(), classes=tuple("abcde")), settings=QUICK, surrogate=make())
    assert_left_as_found(model, before)


def test_outcomes_are_those_of_the_network_in_eval_mode(make):
    data = dataset()
    x, y = data.images.float() / 255, data.labels
    found = evaluate(make().train(), data, settings=QUICK, surrogate=make())
    deployed = make().eval()
    np.testing.assert_array_equal(found.select("clean")[0].correct, (deployed(x).argmax(1) == y).numpy())
    x_adv = pgd(make().eval(), x[:12], y[:12], eps=QUICK.pgd_eps, step=QUICK.pgd_step, steps=2)
    np.testing.assert_array_equal(found.select("pgd")[0].correct, (deployed(x_adv).argmax(1) == y[:12]).numpy())


def test_sanity_checks_take_arrays_and_leave_the_network_as_found(make):
    data = dataset()
    x, y = (data.images[:8].float() / 255), data.labels[:8]
    model = make().train()
    before = snapshot(model)
    found = run_sanity_checks(model, x.numpy(), y.tolist(), settings=QUICK)
    assert_left_as_found(model, before)
    assert found == run_sanity_checks(make().eval(), x, y, settings=QUICK)


def test_a_function_is_one_sentence(make):
    model = make()
    for call in (
        lambda: evaluate(lambda x: model(x), dataset(), settings=QUICK, surrogate=model),
        lambda: evaluate(model, dataset(), settings=QUICK, surrogate=lambda x: model(x)),
        lambda: run_sanity_checks(lambda x: model(x), torch.zeros(1, 3, 8, 8), [0], settings=QUICK),
    ):
        with pytest.raises(InputError, match=r"is a function, expected a torch\.nn\.Module") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(make):
    numbers = {
        "seed": np.int64(3),
        "pgd_steps": np.int32(2),
        "pgd_eps": np.float64(0.05),
        "attack_draws": [np.int64(1)],
    }
    settings = replace(QUICK, conditions=["clean", "pgd"], **numbers)
    plain = replace(QUICK, conditions=("clean", "pgd"), seed=3, pgd_eps=0.05, attack_draws=(1,))
    assert settings == plain
    model = noisy(make())
    found = evaluate(model, dataset(), settings=settings)
    assert format_evaluation(found) == format_evaluation(evaluate(model, dataset(), settings=plain))
    assert compare(found, found, "clean", severity=np.int64(0)).p_value == 1


def test_statistics_take_arrays_lists_and_tensors():
    values, others = np.array([0.9, 0.8, 0.85]), torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    assert mean_std(values) == mean_std(values.tolist())
    assert welch(values, others) == welch(values.tolist(), others.tolist())
    assert wilson(np.int64(81), np.int64(263)) == wilson(81, 263)
    right, wrong = [True, True, False, True], [False, True, False, False]
    expected = paired(np.array(right), np.array(wrong))
    assert paired(right, wrong) == paired(torch.tensor(right), torch.tensor(wrong)) == expected
    assert (expected.only_a, expected.only_b, expected.p_value) == (2, 0, 0.5)


def test_two_processes_evaluate_as_one_does_and_leave_networks_as_found(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*torchrun, script, tmp_path], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name, make in NETWORKS.items():
        found = evaluate(in_place_and_noisy(make), dataset(), settings=QUICK, surrogate=make())
        for rank in range(2):
            assert (tmp_path / f"{name}-{rank}.json").read_text() == format_evaluation(found)
