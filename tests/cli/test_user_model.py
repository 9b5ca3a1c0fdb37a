"""A user's own network and data set, in every command."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noiseprop.cli import main
from noiseprop.evaluation import settings
from noiseprop.evaluation.serialization import read_evaluation
from noiseprop.files.checksum import add_checksum
from noiseprop.runs.trained_model import load_run
from noiseprop.training.run_config import SplitSizes

NETS = """
from torch import nn

print("IMPORTED")


def small(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, classes))


def other(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with nets of its own and one data set in three forms; three classes told by their colour."""
    home = tmp_path_factory.mktemp("home")
    (home / "nets_of_mine.py").write_text(NETS)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.random((240, 8, 8, 3)) * 100 + 150 * np.eye(3)[y][:, None, None]).astype(np.uint8)
    np.savez(home / "shades.npz", x=x, y=y)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        folder = home / "shades" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return home


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(sys.path))
    few = replace(settings.SETTINGS["cifar10"], attack_images=20, trust_images=8, vote_draws=2, attack_draws=(1, 2))
    few = replace(few, conditions=("clean", "fgsm", "fgsm-transfer", "contrast"))
    monkeypatch.setitem(settings.SETTINGS, "cifar10", few)
    yield
    sys.modules.pop("nets_of_mine", None)


TRAIN = ["train", "--model", "nets_of_mine:small", "--epochs", "4"]


@pytest.fixture(scope="module")
def run(home) -> Path:
    """A noisy run that several tests look at and none changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "path", list(sys.path))
        options = ["--data", "shades.npz", "--noise", "linear", "--init", "0.5", "--seed", "2"]
        assert main([*TRAIN[:-1], "30", *options, "--out", "runs/mine"]) == 0
    sys.modules.pop("nets_of_mine", None)
    return home / "runs" / "mine"


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def fails(capsys, arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.startswith("noiseprop: ")
    assert said.err.count("\n") == 1
    return said.err


def test_the_run_tells_how_to_make_it_again(run):
    told = json.loads((run / "config.json").read_text())["settings"]
    assert told["model"] == {
        "kind": "user",
        "name": "nets_of_mine:small",
        "image": [3, 8, 8],
        "classes": 3,
        "seed": 2,
        "noise": ["linear"],
        "granularity": "neuron",
        "init": 0.5,
        "learn": True,
    }
    assert told["data"]["name"] == "shades.npz"
    assert told["data"]["path"] == str(run.parents[1] / "shades.npz")
    assert len(told["data"]["digest"]) == 64
    model, _ = load_run(run, ["nets_of_mine:small"])
    assert model.get_submodule("1.noise").sigma.shape == (16,)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_accuracy"] > 0.8  # a chance is 1/3


def test_folder_and_npz_of_the_same_images_train_as_well(run, tmp_path):
    assert main([*TRAIN, "--data", "shades/", "--fixed-noise", "--noise", "1", "--out", str(tmp_path / "x")]) == 0
    model, told = load_run(tmp_path / "x", ["nets_of_mine:small"])
    assert told.data.images == SplitSizes(160, 40, 40)
    assert [name for name, _ in model.named_parameters() if "sigma" in name] == []
    assert "1.noise.sigma" in model.state_dict()


def test_networks_of_the_paper_take_data_of_one_s_own(tmp_path, capsys):
    digits = np.random.default_rng(1).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=digits, y=np.arange(60) % 4)
    assert (
        main(
            [
                "train",
                "--model",
                "MLPN",
                "--data",
                str(tmp_path / "d.npz"),
                "--epochs",
                "1",
                "--out",
                str(tmp_path / "r"),
            ]
        )
        == 0
    )
    model, _ = load_run(tmp_path / "r")
    assert model.fc3.weight.shape == (4, 50)
    assert "takes images of shape (3, 32, 32)" in fails(
        capsys, ["train", "--model", "ResNet18", "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "q")]
    )


def test_own_networks_take_the_known_data(tmp_path, home):
    (home / "digit_nets.py").write_text(NETS.replace("192", "784"))
    command = [
        "train",
        "--model",
        "digit_nets:small",
        "--data",
        "mnist-5k",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(command) == 0
    _, told = load_run(tmp_path / "r", ["digit_nets:small"])
    assert told.model.image == (1, 28, 28)
    assert told.data.path == ""


def test_evaluate_and_inspect_work_when_the_network_is_named_again(run, tmp_path, capsys):
    mine = copy(run, tmp_path / "mine")
    trust = ["--model", "nets_of_mine:small"]
    assert main(["evaluate", str(mine), *trust]) == 0
    evaluation = read_evaluation(mine / "evaluation.json")
    assert (evaluation.dataset, evaluation.images) == ("shades.npz", 40)
    assert evaluation.settings.pgd_eps == 8 / 255
    assert evaluation.about["model"] == "nets_of_mine:small"
    assert evaluation.accuracy("clean") > 0.8
    assert "No transfer attacks" in capsys.readouterr().out
    assert main(["inspect", str(mine), *trust, "--batches", "2"]) == 0
    assert "shades.npz" not in fails(capsys, ["inspect", str(mine)])

    plain = tmp_path / "plain"
    assert (
        main(["train", "--model", "nets_of_mine:other", "--data", "shades.npz", "--epochs", "1", "--out", str(plain)])
        == 0
    )
    both = [*trust, "nets_of_mine:other", "--surrogate", str(plain)]
    capsys.readouterr()
    assert main(["evaluate", str(mine), *both, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    transfer = next(m for m in told["measurements"] if (m["condition"], m["state"]) == ("fgsm-transfer", "one"))
    assert transfer["accuracy"] == read_evaluation(mine / "evaluation.json").accuracy("fgsm-transfer")
    assert 0 <= transfer["interval"][0] <= transfer["accuracy"] <= transfer["interval"][1] <= 1
    assert "nets_of_mine:other" in fails(capsys, ["evaluate", str(mine), *trust, "--surrogate", str(plain)])


@pytest.mark.parametrize("command", [["evaluate"], ["inspect"], ["train", "--resume", "--epochs", "99", "--out"]])
def test_code_that_a_run_names_is_not_imported_unless_it_is_named_again(run, tmp_path, capsys, command):
    stranger = copy(run, tmp_path / "stranger")
    sys.modules.pop("nets_of_mine", None)
    said = fails(capsys, [*command, str(stranger)])
    assert (
        "holds the network nets_of_mine:small, which is code; if you trust it, pass --model nets_of_mine:small" in said
    )
    assert "nets_of_mine" not in sys.modules
    if command[0] != "train":  # there another name is another setting
        fails(capsys, [*command, str(stranger), "--model", "nets_of_mine:other"])
        assert "nets_of_mine" not in sys.modules


def test_a_report_looks_into_the_network_only_when_it_is_named_again(run, tmp_path, capsys):
    page = tmp_path / "report.html"
    sys.modules.pop("nets_of_mine", None)
    assert main(["report", str(run), "--images", "0", "--out", str(page)]) == 0
    assert "nets_of_mine" not in sys.modules
    assert "which is code; if you trust it, pass --model nets_of_mine:small" in capsys.readouterr().out
    train = f"--model nets_of_mine:small --data {run.parents[1] / 'shades.npz'} --epochs 30 --seed 2 --noise linear"
    assert f"{train} --granularity neuron --init 0.5 --out {run}" in page.read_text()
    assert main(["report", str(run), "--images", "0", "--out", str(page), "--model", "nets_of_mine:small"]) == 0
    assert "which is code" not in capsys.readouterr().out
    assert "nets_of_mine" in sys.modules


def test_a_resumed_run_has_the_bits_of_a_whole_one_though_its_data_have_moved(tmp_path, home):
    options = ["--model", "nets_of_mine:small", "--noise", "linear"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(["train", *options, "--data", "shades.npz", "--epochs", "4", "--out", str(whole)]) == 0
    assert main(["train", *options, "--data", "shades.npz", "--epochs", "2", "--out", str(halves)]) == 0
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(home / "shades.npz", tmp_path / "elsewhere")
    more = ["train", "--resume", "--epochs", "4", "--out", str(halves), "--model", "nets_of_mine:small"]
    assert main([*more, "--data", str(moved)]) == 0
    models = [(folder / "model.safetensors").read_bytes() for folder in (whole, halves)]
    assert models[0] == models[1]
    assert json.loads((halves / "config.json").read_text())["settings"]["data"]["path"] == str(moved)


def test_other_settings_of_a_run_are_refused_by_name(run, capsys):
    resume = ["train", "--resume", "--model", "nets_of_mine:small", "--out", str(run)]
    for given, told in (
        (["--init", "1"], "model.init = 0.5 there and 1.0 now"),
        (["--noise", "1"], "model.noise = ['linear'] there and ['1'] now"),
        (["--fixed-noise"], "model.learn = True there and False now"),
        (["--granularity", "layer"], "model.granularity = 'neuron' there and 'layer' now"),
        (["--data", "mnist"], "data.name = 'shades.npz' there and 'mnist' now"),
    ):
        assert told in fails(capsys, [*resume, *given])


def test_data_that_have_changed_or_gone_are_told(run, tmp_path, home, capsys):
    x, y = (np.load(home / "shades.npz")[name] for name in "xy")
    np.savez(tmp_path / "shades.npz", x=255 - x, y=y)
    trust = ["--model", "nets_of_mine:small"]
    said = fails(capsys, ["inspect", str(run), *trust, "--data", str(tmp_path / "shades.npz")])
    assert "was trained on other data" in said
    assert "--data for user data" in said
    gone = copy(run, tmp_path / "gone")
    config = json.loads((gone / "config.json").read_text())
    config["settings"]["data"]["path"] = str(tmp_path / "gone.npz")
    (gone / "config.json").write_text(json.dumps(add_checksum(config)))
    assert "no such folder or file; set --data to the path of the data" in fails(capsys, ["inspect", str(gone), *trust])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image", [1, 2]),
        ("image", "3"),
        ("noise", [1]),
        ("noise", "linear"),
        ("granularity", 3),
        ("colour", "red"),
        ("learn", 1),
    ],
)
def test_wrong_values_in_config_are_one_sentence(run, tmp_path, capsys, key, value):
    bad = copy(run, tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text())
    config["settings"]["model"][key] = value
    (bad / "config.json").write_text(json.dumps(add_checksum(config)))
    said = fails(capsys, ["inspect", str(bad), "--model", "nets_of_mine:small"])
    place = "$.settings.model" if key == "colour" else f"$.settings.model.{key}"
    assert f"at `{place}" in said or "Expected `array` of length 3" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "MLPN", "--noise", "all"], "the name MLPN fixes its noise; --noise and its options are for"),
        (["--model", "nets_of_mine:small", "--noise", "all", "--init", "-1"], "--init must be at least 0 and finite"),
        (["--model", "nets_of_mine:small", "--noise", "all", "--init", "nan"], "--init must be at least 0 and finite"),
        (["--model", "nets_of_mine:small", "--lr", "-1"], "lr is -1.0: Expected `float` >= 0"),
        (["--model", "nets_of_mine:small", "--init", "2"], "require --noise; say where"),
        (["--model", "nets_of_mine:small", "--activation", "relu"], "--activation is for the MLP of the paper"),
        (
            ["--model", "nets_of_mine:smal"],
            "has no function smal; name one that returns a network (did you mean small?)",
        ),
        (["--model", "nets_of_yours:small"], "module nets_of_yours was not found in"),
        (["--model", "MLPM"], "(did you mean MLP"),
        (["--model", "nets_of_mine:small", "--data", "mnist5k"], "(did you mean mnist-5k?)"),
        (["--model", "nets_of_mine:small", "--data", "nowhere/"], "nowhere: no such folder or file"),
    ],
)
def test_bad_input_of_train_is_one_sentence_and_leaves_no_folder(options, says, tmp_path, capsys):
    capsys.readouterr()
    command = ["train", *(["--data", "shades.npz"] if "--data" not in options else []), *options]
    assert main([*command, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("noiseprop: ")
    assert said.count("\n") == 1
    assert says in said
    assert not (tmp_path / "run").exists()


def test_training_options_are_recorded_and_small_data_get_small_batches(tmp_path, capsys):
    options = ["--data", "shades.npz"]
    assert main([*TRAIN, *options, "--out", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out.count("Batch size 16 for 160 training images; set another with --batch-size.\n") == 1
    recipe = json.loads((tmp_path / "small" / "config.json").read_text())["settings"]["recipe"]
    assert (recipe["batch_size"], recipe["lr"], recipe["name"]) == (16, 1e-3, "table1")
    given = ["--lr", "0.02", "--sigma-lr", "0.5", "--batch-size", "50", "--weight-decay", "0.25"]
    given += ["--optimizer", "sgd", "--schedule", "one-cycle"]
    assert main([*TRAIN, *options, *given, "--out", str(tmp_path / "given")]) == 0
    assert "Batch size" not in capsys.readouterr().out
    recipe = json.loads((tmp_path / "given" / "config.json").read_text())["settings"]["recipe"]
    values = {"lr": 0.02, "sigma_lr": 0.5, "batch_size": 50, "weight_decay": 0.25, "optimizer": "sgd", "momentum": 0.9}
    assert {key: recipe[key] for key in values} == values
    assert (recipe["schedule"], recipe["name"]) == ("one-cycle", "custom")
    resume = ["train", "--resume", "--model", "nets_of_mine:small", "--out", str(tmp_path / "given")]
    assert "recipe.lr = 0.02 there and 0.1 now" in fails(capsys, [*resume, "--lr", "0.1"])


def test_json_is_all_that_train_prints_on_stdout(tmp_path, capsys):
    capsys.readouterr()
    assert main([*TRAIN, "--data", "shades.npz", "--out", str(tmp_path / "r"), "--json", "--noise", "1"]) == 0
    told = json.loads(capsys.readouterr().out)  # what the module prints as it is imported goes elsewhere
    assert (told["epoch"], told["model"], told["data"]) == (4, "nets_of_mine:small", "shades.npz")
    assert told["sigma"]["1.noise"]["mean"] == pytest.approx(
        float(load_run(tmp_path / "r", ["nets_of_mine:small"])[0].get_submodule("1.noise").sigma.detach().abs().mean())
    )
