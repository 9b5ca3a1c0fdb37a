"""Several processes train one model together; what each of them does is in worlds.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from noiseprop.cli import main
from noiseprop.distributed import World
from noiseprop.training import read_config, read_metrics

LOOPBACK = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def start(folder: Path, sizes: str, *scenarios: str) -> subprocess.CompletedProcess:
    """Let worlds of these sizes live through scenarios; it prints how each of their processes ended."""
    command = [sys.executable, Path(__file__).parent / "training" / "worlds.py", folder, sizes, *scenarios]
    done = subprocess.run(command, env=os.environ | LOOPBACK, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    """What the processes of three worlds left behind."""
    folder = tmp_path_factory.mktemp("worlds")
    done = start(folder, "1,2,4", "noise", "learn", "odd", "refused", "resume", "judge")
    assert json.loads(done.stdout) == {"1": [0], "2": [0] * 2, "4": [0] * 4}, done.stderr
    assert not done.stderr  # no warnings, either
    return folder


def of_each(folder: Path, size: int, scenario: str, name: str = "{}.safetensors") -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / str(size) / scenario / name.format(rank)) for rank in range(size)]


def test_any_number_of_processes_draws_the_same_noise(worlds):
    """Bit for bit, in training and in validation, and where a process has no row of the last batch."""
    (alone,) = of_each(worlds, 1, "noise")
    assert [len(batch) for batch in alone.values()] == 2 * [32, 32, 32, 32, 3, 41]
    assert len({batch[0, 0].item() for batch in alone.values()}) == 12
    for size in (2, 4):
        processes = of_each(worlds, size, "noise")
        for name, whole in alone.items():
            rows = [World(rank, size).shard_rows(len(whole)) for rank in range(size)]
            own = [seen[name] for seen, row in zip(processes, rows, strict=True) if row.start < row.stop]
            assert torch.equal(torch.cat(own), whole)


def test_any_number_of_processes_learns_the_same(worlds):
    """100 steps; one in five has 3 images for 2 or 4 processes, so that shares are unequal or empty."""
    said = {size: json.loads((worlds / str(size) / "learn" / "0.json").read_text()) for size in (1, 2, 4)}
    (alone,) = of_each(worlds, 1, "learn")
    assert len(said[1]["losses"]) == 100
    assert said[1]["losses"][-1] < 0.9 * said[1]["losses"][0]
    assert alone["fc1.noise.sigma"].std() > 1e-3
    for size in (2, 4):
        assert said[size]["losses"] == pytest.approx(said[1]["losses"], rel=1e-5)
        for epoch, expected in zip(said[size]["validation"], said[1]["validation"], strict=True):
            assert epoch == pytest.approx(expected, rel=1e-5)
        first, *others = of_each(worlds, size, "learn")
        for name, tensor in alone.items():
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
            assert all(torch.equal(other[name], first[name]) for other in others)
        for rank in range(1, size):
            other = json.loads((worlds / str(size) / "learn" / f"{rank}.json").read_text())
            assert other == {"losses": [], "validation": said[size]["validation"]}


def test_a_resumed_world_ends_with_the_same_bits(worlds):
    """With batch norm, whose statistics are those of the first process in all of them."""
    means = []
    for size in (2, 4):
        folder = worlds / str(size) / "resume"
        whole, *others = of_each(worlds, size, "resume", "{}-whole.safetensors")
        again = of_each(worlds, size, "resume", "{}-parts.safetensors")
        kept = load_file(folder / "parts" / "model.safetensors")
        for name, tensor in whole.items():
            assert all(torch.equal(net[name], tensor) for net in (*others, *again, kept)), (size, name)
        assert [epoch.epoch for epoch in read_metrics(folder / "parts")] == [1, 2, 3, 4]
        assert read_config(folder / "parts").made_with.processes == size
        means.append(whole["1.running_mean"])
    assert not torch.allclose(*means, rtol=1e-3)  # of the rows of one process alone


def test_any_number_of_processes_judges_the_same(worlds):
    """Byte for byte, in each of them: clean, attacked by 1 and 4 draws, transferred, corrupted, and doubted."""
    alone = (worlds / "1" / "judge" / "0.json").read_bytes()
    figures = json.loads(alone)
    assert len({(m["condition"], m["state"]) for m in figures["measurements"]}) == 3 * (1 + 3 + 2 + 4)
    pgd = {m["state"]: m["right"] / m["n"] for m in figures["measurements"] if m["condition"] == "pgd"}
    assert all(0.05 < accuracy < 0.95 for accuracy in pgd.values())
    assert {m["n"] for m in figures["measurements"]} == {300, 150, 100, 70}
    assert len(figures["findings"]) == 6
    for size in (2, 4):
        for rank in range(size):
            assert (worlds / str(size) / "judge" / f"{rank}.json").read_bytes() == alone
        assert (worlds / str(size) / "judge" / "kept").read_bytes() == (worlds / "1" / "judge" / "kept").read_bytes()


def test_processes_share_an_evaluation_and_go_on_with_one(worlds):
    told = {
        size: [json.loads((worlds / str(size) / "judge" / f"{rank}-told.json").read_text()) for rank in range(size)]
        for size in (1, 2, 4)
    }
    ((whole, _),) = (said["passes"] for said in told[1])
    for size, processes in told.items():
        assert all(said["same"] for said in processes)
        assert all(again < 0.9 * first for first, again in (said["passes"] for said in processes))
        assert whole <= sum(said["passes"][0] for said in processes) < 1.1 * whole
        if size > 1:
            (said,) = {process["refused"] for process in processes}
            assert said.startswith(f"process 1 of {size} does not agree with process 0: model = '")


def test_processes_that_do_not_fit_together_are_refused(worlds):
    folder = worlds / "2" / "refused"
    said, *others = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert others == [said]
    remedy = "start all with the same command, on data and in a run folder that all can see"
    for text in said:
        assert text.startswith("process 1 of 2 does not agree with process 0: ")
        assert text.endswith(f"; {remedy}")
    seed, data, other, none, network = (text.split(": ", 1)[1].split(";")[0] for text in said)
    assert seed == "seed = 1 there and 0 in process 0"
    assert data.startswith("data.digest = '")
    assert other.startswith("the run folder = 'no run' there and 'a run with 0 epochs and the settings ")
    assert none == "run folder = False there and True in process 0"
    assert "network.fc1.weight = [9, 36] there and [8, 36] in process 0" in network
    assert not any((folder / name / "config.json").exists() for name in ("seed", "data", "none", "network"))


def test_unused_parameters_and_convolutions(worlds):
    (alone,), (first, other) = of_each(worlds, 1, "odd"), of_each(worlds, 2, "odd")
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], other[name])
    assert torch.equal(alone["unused"], torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_dead_process_ends_the_others_and_the_run_goes_on(tmp_path, size):
    done = start(tmp_path, str(size), "dies")
    assert json.loads(done.stdout) == {str(size): [1] * (size - 1) + [-9]}
    lines = done.stderr.splitlines()
    assert len(lines) == size - 1
    assert all(" has lost another one and stops; " in line for line in lines)
    folder = tmp_path / str(size)
    assert len(read_metrics(folder / "dies" / "run")) == 1
    assert json.loads(start(tmp_path, str(size), "goes_on").stdout) == {str(size): [0] * size}
    for name in ("model.safetensors", "state.safetensors"):
        whole = (folder / "goes_on" / "whole" / name).read_bytes()
        assert (folder / "dies" / "run" / name).read_bytes() == whole


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 4), (7, 3), (64, 64), (1000, 7)])
def test_the_rows_of_all_processes_are_the_batch(count, size):
    rows = [list(range(count))[World(rank, size).shard_rows(count)] for rank in range(size)]
    assert sum(rows, []) == list(range(count))  # noqa: RUF017 - few
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_shares_of_a_loss_average_to_the_loss():
    logits, y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    worlds = [World(rank, 3) for rank in range(3)]
    shares = [world.share_loss(logits[world.shard_rows(7)], y[world.shard_rows(7)], 7) for world in worlds]
    torch.testing.assert_close(torch.stack(shares).mean(), nn.functional.cross_entropy(logits, y))
    assert torch.equal(World().share_loss(logits, y, 7), nn.functional.cross_entropy(logits, y))


def test_other_commands_are_refused_under_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "noiseprop: torchrun works with train and evaluate only; start `noiseprop demo` in one process\n"
    )


def torchrun(*arguments: object, processes: int = 2, **environment: str) -> subprocess.CompletedProcess:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*starter, "-m", "noiseprop", *map(str, arguments)]
    env = os.environ | LOOPBACK | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_torchrun_starts_the_command(tmp_path):
    options = ["--model", "MLPN", "--data", "mnist-5k", "--epochs", "2", "--out"]
    done = torchrun("train", *options, tmp_path / "pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in") == 1
    assert main(["train", *options, str(tmp_path / "alone")]) == 0
    for pair, alone in zip(read_metrics(tmp_path / "pair"), read_metrics(tmp_path / "alone"), strict=True):
        assert pair.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
        assert pair.validation_loss == pytest.approx(alone.validation_loss, rel=1e-3)
    again = torchrun("train", *options, tmp_path / "pair")
    assert again.returncode == 1
    assert f"noiseprop: {tmp_path / 'pair'} holds a run already; continue it with --resume" in again.stderr
    assert main(["train", "--resume", "--epochs", "3", "--out", str(tmp_path / "pair")]) == 0
    assert len(read_metrics(tmp_path / "pair")) == 3


@pytest.mark.slow
def test_torchrun_evaluates_as_one_process_does(tmp_path):
    """The same file, byte for byte; the surrogate is trained by one process while the others wait."""
    run = tmp_path / "run"
    assert main(["train", "--model", "MLPN", "--data", "mnist-5k", "--epochs", "2", "--out", str(run)]) == 0
    kept = []
    for processes in (1, 2):
        done = torchrun("evaluate", run, processes=processes, XDG_CACHE_HOME=str(tmp_path / str(processes)))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Saved in") == 1
        kept.append((run / "evaluation.json").read_bytes())
        (run / "evaluation.json").unlink()
        assert not (run / "evaluation.partial.jsonl").exists()
    assert kept[0] == kept[1]
