from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from noiseprop.data import Dataset, digest, split
from noiseprop.errors import InputError, RunError
from noiseprop.runs import surrogates
from noiseprop.runs.surrogates import load_surrogate
from noiseprop.runs.trained_model import load_run
from noiseprop.training import Recipe

RECIPE = Recipe(epochs=2, batch_size=16)


@pytest.fixture
def digits():
    """140 noisy images, bright in the upper half or the lower, which is their label."""
    labels = torch.arange(140) % 2
    images = torch.randint(100, (140, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images[labels == 0, :, :14] += 120
    images[labels == 1, :, 14:] += 120
    return Dataset("mnist", images.to(torch.uint8), labels, tuple("0123456789"))


@pytest.fixture
def trainings(monkeypatch):
    """The folders that a training was asked for."""
    asked, train_run = [], surrogates.train_run

    def counting(name, dataset, recipe, folder, **options):
        asked.append(folder)
        return train_run(name, dataset, recipe, folder, **options)

    monkeypatch.setattr(surrogates, "train_run", counting)
    return asked


def test_trains_the_papers_network_once_and_reads_it_afterwards(digits, trainings, tmp_path):
    first = load_surrogate(digits, recipe=RECIPE, cache=tmp_path)
    again = load_surrogate(digits, recipe=RECIPE, cache=tmp_path)
    assert len(trainings) == 1
    assert [tuple(p.shape) for p in first.parameters()] == [(300, 784), (300,), (150, 300), (150,), (10, 150), (10,)]
    assert not first.training
    assert not again.training
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    x = digits.images.float() / 255
    assert (first(x).argmax(1) == digits.labels).float().mean() > 0.95


def test_its_folder_is_a_run_like_others(digits, trainings, tmp_path):
    net = load_surrogate(digits, recipe=RECIPE, cache=tmp_path)
    loaded, settings = load_run(trainings[0])
    assert settings.model.activation == "relu"
    assert settings.data.digest == digest(split(digits))
    x = digits.images.float() / 255
    assert torch.equal(loaded(x), net(x))


def test_another_configuration_is_another_surrogate(digits, trainings, tmp_path):
    load_surrogate(digits, recipe=RECIPE, cache=tmp_path)
    load_surrogate(digits, recipe=replace(RECIPE, lr=1e-2), cache=tmp_path)
    load_surrogate(digits, recipe=RECIPE, seed=1, cache=tmp_path)
    load_surrogate(digits[:70], recipe=RECIPE, cache=tmp_path)
    assert len(set(trainings)) == 4


def test_other_images_of_the_same_number_do_not_find_it(digits, tmp_path):
    load_surrogate(digits, recipe=RECIPE, cache=tmp_path)
    with pytest.raises(RunError, match="was trained on other data"):
        load_surrogate(replace(digits, images=digits.images.flip(3)), recipe=RECIPE, cache=tmp_path)


def test_a_training_that_was_cut_short_is_gone_on_with(digits, trainings, tmp_path):
    class KilledError(Exception):
        pass

    def kill(done, total, _loss):
        if done > total // 2:
            raise KilledError

    with pytest.raises(KilledError):
        load_surrogate(digits, recipe=RECIPE, cache=tmp_path, progress=kill)
    late = load_surrogate(digits, recipe=RECIPE, cache=tmp_path)
    whole = load_surrogate(digits, recipe=RECIPE, cache=tmp_path / "other")
    assert len(trainings) == 3
    for a, b in zip(late.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_two_that_ask_at_once_train_once(digits, trainings, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: load_surrogate(digits, recipe=RECIPE, cache=tmp_path), range(2))
    assert len(trainings) == 1
    assert torch.equal(next(one.parameters()), next(other.parameters()))


def test_a_data_set_without_surrogate_is_refused(digits, tmp_path):
    with pytest.raises(
        InputError, match="paper has no surrogate for 'letters'; name the data set one of mnist, cifar10, tiny-imagenet"
    ):
        load_surrogate(replace(digits, name="letters"), cache=tmp_path)
