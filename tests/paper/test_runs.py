from dataclasses import replace

import pytest
import torch

from noiseprop.data import Dataset
from noiseprop.errors import InputError, RunError
from noiseprop.paper.runs import load_run, train_run
from noiseprop.training import TABLE_1


def made_up(name: str, shape: tuple[int, int, int], count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Dataset(name, images, torch.arange(count) % 10, tuple("0123456789"))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two networks have the same bits, the place of their noise included."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_loaded_as_it_was_kept(tmp_path):
    digits = made_up("mnist", (1, 28, 28), 350)
    recipe = replace(TABLE_1["mnist"], epochs=2)
    model, epochs = train_run("MLPN", digits, recipe, tmp_path / "run", seed=4, activation="sigmoid", init=0.5)
    assert len(epochs) == 2
    loaded, settings = load_run(tmp_path / "run")
    assert settings["model"] == {"name": "MLPN", "seed": 4, "classes": 10, "activation": "sigmoid", "init": 0.5}
    assert settings["data"]["images"] == {"train": 250, "validation": 50, "test": 50}
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(model(x), loaded(x))  # the noise stands where it stood, too


def test_the_number_of_classes_is_the_data_s(tmp_path):
    digits = made_up("mnist", (1, 28, 28), 70)
    three = replace(digits, labels=digits.labels % 3, classes=("a", "b", "c"))
    model, _ = train_run("MLP", three, replace(TABLE_1["mnist"], epochs=1), tmp_path / "run")
    assert model.fc3.out_features == load_run(tmp_path / "run")[0].fc3.out_features == 3


def test_images_of_another_shape_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"CNN takes images of shape \(1, 28, 28\), those of cifar10"):
        train_run("CNN", made_up("cifar10", (3, 32, 32), 60), TABLE_1["cifar10"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resnet18_with_noise_everywhere_trains_and_resumes(tmp_path, precision):
    pictures = made_up("cifar10", (3, 32, 32), 96)
    recipe = replace(TABLE_1["cifar10"], epochs=2, batch_size=32, precision=precision)

    def stop(step, total, loss):
        if step == total:
            raise KeyError

    whole, epochs = train_run("ResNet18-AN", pictures, recipe, tmp_path / "whole")
    with pytest.raises(KeyError):
        train_run("ResNet18-AN", pictures, recipe, tmp_path / "parts", progress=stop)
    parts, again = train_run("ResNet18-AN", pictures, recipe, tmp_path / "parts", resume=True)
    assert [replace(epoch, seconds=0.0) for epoch in epochs] == [replace(epoch, seconds=0.0) for epoch in again]
    assert same(whole, parts)
    assert len(epochs[0].sigma) == 11
