import json
import sys
from pathlib import Path

import pytest
import torch

from noiseprop.cli import main
from noiseprop.noise.kernels import dispatch as kernels

NETS = """
import torch
from torch import nn


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class Wrong(nn.Module):
    def forward(self, x):
        return Halved.apply(x)


def right(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, classes))


def wrong(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), Wrong(), nn.ReLU(), nn.Linear(8, classes))
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    (tmp_path / "check_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    yield
    sys.modules.pop("check_nets", None)


def test_it_reports_the_machine_and_passes_on_the_paper_s_network(capsys):
    assert main(["check", "--draws", "20"]) == 0
    said = capsys.readouterr().out
    assert f"torch          {torch.__version__}" in said
    assert "noise kernel   fused, compiled by numba, on the threads of torch" in said
    assert "MLPN: Theorems 1 and 2 hold in 3 of 3 layers." in said
    table = [line.split() for line in said.splitlines() if line.startswith("fc")]
    assert [(row[0], row[1], row[4], row[-1]) for row in table] == [
        ("fc1", "100", "pass", "pass"),
        ("fc2", "50", "pass", "pass"),
        ("fc3", "10", "pass", "pass"),
    ]
    flags = Path("/proc/cpuinfo").read_text()
    assert f"AVX-512        {'yes' if ' avx512f' in flags else 'no'}" in said
    assert f"AMX            {'yes' if ' amx_bf16' in flags else 'no'}" in said
    assert max(map(len, said.splitlines())) <= 120


def test_without_numba_the_kernel_is_not_said_to_be_in_use(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "has_numba", False)
    assert main(["check", "--draws", "2"]) == 0
    assert "plain torch, slower: numba is missing" in capsys.readouterr().out


def test_a_network_of_one_s_own_that_is_right_passes(capsys):
    command = ["check", "--model", "check_nets:right", "--data", "cifar10", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True
    assert [layer["path"] for layer in told["layers"]] == ["1", "3"]
    assert told["machine"]["torch"] == torch.__version__


def test_a_network_with_a_wrong_gradient_fails_with_1_and_names_the_layer(capsys):
    command = ["check", "--model", "check_nets:wrong", "--data", "cifar10", "--noise", "linear", "--init", "0.5"]
    assert main(command) == 1
    said = capsys.readouterr()
    *progress, verdict = said.err.splitlines()  # of a slow check its progress, too
    assert verdict == "noiseprop: check_nets:wrong: the check failed for 1"
    assert all(line.startswith("checking check_nets:wrong: ") for line in progress)
    rows = {line.split()[0]: line for line in said.out.splitlines() if line[:2] in ("1 ", "4 ")}
    assert "FAIL" in rows["1"]
    assert "FAIL" not in rows["4"]
    assert "hold in" not in said.out
    assert main([*command, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False
    assert [layer["theorem_1"] for layer in told["layers"]] == [False, True]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "MLP"], "has no learned noise to check"),
        (["--model", "MLPN", "--data", "cifar10"], "--noise and --data are for module:function"),
        (["--model", "MLPNN"], "(did you mean MLPN?)"),
        (["--model", "check_nets:right"], "check_nets:right does not take images of shape (2, 1, 28, 28)"),
        (["--init", "-1"], "--init must be at least 0 and finite, or normal, got -1"),
        (["--draws", "1"], "--draws is 1; give 2 or more"),
        (["--images", "0"], "--images is 0; give 2 or more"),
    ],
)
def test_bad_input_is_one_sentence(options, says, capsys):
    assert main(["check", *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("noiseprop: ")
    assert says in said
    assert said.count("\n") == 1
