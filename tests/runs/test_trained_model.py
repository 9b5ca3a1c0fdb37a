import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from msgspec import structs

from noiseprop.data import Dataset, split
from noiseprop.errors import InputError, RunError
from noiseprop.files.checksum import add_checksum
from noiseprop.models.registry import RegisteredModelConfig
from noiseprop.runs import trained_model as runs
from noiseprop.runs.trained_model import load_run, train_run
from noiseprop.training import TABLE_1, train
from noiseprop.training.objective_config import make_objective
from noiseprop.training.run_config import ObjectiveConfig, SplitSizes


def made_up(name: str, shape: tuple[int, int, int], count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Dataset(name, images, torch.arange(count) % 10, tuple("0123456789"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "kept"
    train_run("MLPN", made_up("mnist", (1, 28, 28), 350), replace(TABLE_1["mnist"], epochs=1), folder)
    return folder


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
    assert settings.model == RegisteredModelConfig("MLPN", activation="sigmoid", seed=4, classes=10, init=0.5)
    assert settings.data.images == SplitSizes(250, 50, 50)
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


def test_other_options_of_a_network_are_refused(tmp_path):
    digits, recipe = made_up("mnist", (1, 28, 28), 350), replace(TABLE_1["mnist"], epochs=1)
    train_run("MLPN", digits, recipe, tmp_path / "run")
    with pytest.raises(RunError, match=r"model.activation = 'relu' there and 'sigmoid' now"):
        train_run("MLPN", digits, replace(recipe, epochs=2), tmp_path / "run", resume=True, activation="sigmoid")
    _, epochs = train_run("MLPN", digits, replace(recipe, epochs=2), tmp_path / "run", resume=True)
    assert len(epochs) == 2


def test_a_network_that_was_an_object_is_loaded_from_python_only(tmp_path):
    digits = made_up("mnist", (1, 28, 28), 350)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    train(net, split(digits), replace(TABLE_1["mnist"], epochs=1), tmp_path / "run")
    with pytest.raises(RunError, match=r"config\.json does not name a network of the paper; load it from Python"):
        load_run(tmp_path / "run")


def test_a_run_keeps_its_objective(tmp_path):
    digits, recipe = made_up("mnist", (1, 28, 28), 350), replace(TABLE_1["mnist"], epochs=1)
    model, _ = train_run("MLPN", digits, recipe, tmp_path / "run", objective=partial(make_objective, "floor", 1.5))
    assert float(model.fc1.noise.sigma.detach().min()) == 1.5
    assert load_run(tmp_path / "run")[1].objective == ObjectiveConfig("Floor", {"floor": 1.5})


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": "MLPN"},
        {"model": {}},
        {"model": {"kind": "pickle"}},
        {"model": {"name": ["MLPN"]}},
        {"model": {"name": "os.system"}},
        {"model": {"classes": 10**12}},
        {"model": {"classes": "ten"}},
        {"model": {"classes": 10.5}},
        {"model": {"seed": 2**64 - 1}},
        {"model": {"seed": "a"}},
        {"model": {"seed": 0.5}},
        {"model": {"init": "huge"}},
        {"model": {"init": [1]}},
        {"model": {"activation": 3}},
        {"model": {"everywhere": 5}},
        {"model": {"colour": "red"}},
        {"data": None},
        {"data": {}},
        {"data": {"name": 3}},
        {"data": {"split_seed": "a"}},
        {"data": {"split_seed": -1}},
        {"data": {"digest": "ab"}},
        {"data": {"ratio": [1, 2]}},
        {"seed": "a"},
        {"objective": 5},
        {"objective": "floor"},
        {"objective": {"name": "Floor"}},
        {"recipe": []},
        {"recipe": {}},
        {"recipe": {"warmup": 3}},
        {"recipe": {"batch_size": 0}},
        {"recipe": {"optimizer": "lion"}},
        {"colour": "red"},
    ],
)
def test_wrong_settings_are_one_sentence(kept, tmp_path, change):
    for file in kept.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    ((part, value),) = change.items()
    recorded = config["settings"].get(part)
    config["settings"][part] = (
        {**recorded, **value} if value and isinstance(recorded, dict) and isinstance(value, dict) else value
    )
    (tmp_path / "config.json").write_text(json.dumps(add_checksum(config)))
    with pytest.raises(RunError, match=r"config\.json") as told:
        load_run(tmp_path)
    assert "\n" not in str(told.value)


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
    assert [structs.replace(epoch, seconds=0.0) for epoch in epochs] == [structs.replace(e, seconds=0.0) for e in again]
    assert same(whole, parts)
    assert len(epochs[0].sigma) == 11


def test_a_run_is_trained_where_it_is_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "train", lambda model, *_, **__: seen.extend(model.parameters()) or [])
    train_run("MLPN", made_up("mnist", (1, 28, 28), 14), TABLE_1["mnist"], None, device="meta")
    assert {parameter.device.type for parameter in seen} == {"meta"}
