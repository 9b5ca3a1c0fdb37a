import json
import math
from dataclasses import asdict, replace

import msgspec
import numpy as np
import pytest

from noiseprop.errors import InputError
from noiseprop.training.recipes import TABLE_1, Recipe, compute_learning_rate, fast


def test_table_1():
    mnist, cifar, tiny = TABLE_1["mnist"], TABLE_1["cifar10"], TABLE_1["tiny-imagenet"]
    assert (mnist.optimizer, mnist.lr, mnist.weight_decay, mnist.epochs, mnist.batch_size) == (
        "adam",
        1e-3,
        1e-4,
        30,
        128,
    )
    assert (cifar.optimizer, cifar.lr, cifar.weight_decay, cifar.epochs, cifar.batch_size) == (
        "adam",
        1e-3,
        1e-4,
        50,
        128,
    )
    assert (tiny.optimizer, tiny.lr, tiny.weight_decay, tiny.epochs, tiny.batch_size) == ("sgd", 1e-2, 5e-4, 80, 128)
    assert (tiny.momentum, tiny.schedule) == (0.9, "steps")
    assert [r.augment for r in (mnist, cifar, tiny)] == [False, True, True]
    assert {r.sigma_lr for r in TABLE_1.values()} == {1e-3}


def test_constant_rate_stays():
    assert {compute_learning_rate(Recipe(), step, 10) for step in range(300)} == {1e-3}


def test_steps_fall_by_a_fifth_every_20_epochs():
    rates = [compute_learning_rate(TABLE_1["tiny-imagenet"], epoch * 10 + 9, 10) for epoch in range(80)]
    assert rates == pytest.approx([1e-2 * 0.8 ** (epoch // 20) for epoch in range(80)])


def test_one_cycle_rises_over_three_tenths_and_falls_to_a_thousandth():
    recipe = fast("tiny-imagenet", epochs=1)
    rates = [compute_learning_rate(recipe, step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3 / 25)
    assert rates[15] == pytest.approx((1e-3 / 25 + 1e-3) / 2)
    assert rates[30] == pytest.approx(1e-3)
    assert rates[65] == pytest.approx(1e-3 * (1e-3 + 1) / 2)
    assert rates[100] == pytest.approx(1e-6)
    assert recipe.name == "fast"


def test_the_fast_recipes_are_table_1_by_adam_with_one_cycle():
    for dataset, base, lr in (
        ("mnist", "mnist", 3e-3),
        ("mnist-5k", "mnist", 3e-3),
        ("cifar10", "cifar10", 1e-3),
        ("tiny-imagenet", "cifar10", 1e-3),
    ):
        changes = {"name": "fast", "epochs": 3, "lr": lr, "schedule": "one-cycle"}
        assert fast(dataset, epochs=3) == replace(TABLE_1[base], **changes)


def test_one_cycle_of_a_single_step_does_not_divide_by_zero():
    assert 0 < compute_learning_rate(fast("mnist", epochs=1), 0, 1) <= 3e-3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0: Expected `int` >= 1"),
        ({"batch_size": -1}, "batch_size is -1: Expected `int` >= 1"),
        ({"lr": math.nan}, "lr is nan: Expected `float`"),
        ({"lr": math.inf}, "lr is inf: Expected `float`"),
        ({"lr": -0.1}, "lr is -0.1: Expected `float` >= 0.0"),
        ({"precision": "fp16"}, "precision is 'fp16': Invalid enum value 'fp16'"),
    ],
)
def test_settings_are_checked(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        Recipe(**changes)


def test_a_recipe_comes_back_from_json():
    for recipe in (Recipe(), fast("cifar10"), TABLE_1["tiny-imagenet"]):
        assert msgspec.convert(json.loads(json.dumps(asdict(recipe))), Recipe) == recipe


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": "many"}, "epochs is 'many': Expected `int`, got `str`"),
        ({"batch_size": 12.5}, "batch_size is 12.5"),
        ({"augment": 1}, "augment is 1"),
        ({"lr": True}, "lr is True"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"epochs": np.int64(0)}, "epochs is 0"),
    ],
)
def test_a_damaged_recipe_is_one_sentence(change, says):
    with pytest.raises(InputError, match=says):
        Recipe(**{**asdict(Recipe()), **change})


def test_numpy_numbers_are_numbers():
    recipe = Recipe(epochs=np.int64(3), lr=np.float32(0.5))
    assert (type(recipe.epochs), type(recipe.lr)) == (int, float)
    assert recipe == Recipe(epochs=3, lr=0.5)
