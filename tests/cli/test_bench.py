import json

import pytest
import torch

from noiseprop import add_noise
from noiseprop.cli import bench, main
from noiseprop.training.step_cost import STEP_VARIANTS, measure_step_cost


def test_it_prints_what_a_step_costs(capsys):
    assert main(["bench", "--model", "MLPN", "--batch-size", "16", "--seconds", "0.2"]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith(STEP_VARIANTS)]
    assert len(rows) == 3
    assert "1.00x" in rows[0]
    assert "MLPN, 16 images of 1x28x28, float32; " in said
    assert main(["bench", "--model", "MLPN", "--batch-size", "16", "--seconds", "0.2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"]["no noise"]["median"] == 1
    assert all(told["figures"][name]["milliseconds"] > 0 for name in STEP_VARIANTS)


def test_three_networks_are_timed_of_which_two_have_noise(monkeypatch):
    """What is timed is told by what each step does, for times themselves cannot be asserted."""
    from noiseprop.training import step_cost as module

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    add_noise(net, "linear", init=0.5, example=torch.zeros(1, 6))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = []
    made = module._make_step
    monkeypatch.setattr(module, "_make_step", lambda model, x, y: seen.append(model) or made(model, x, y))
    x, y = torch.rand(8, 6), torch.arange(8) % 3
    measure_step_cost(net, x, y, seconds=0.1, rounds=2)
    silent, ours, plain = seen
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert torch.equal(silent(x), silent(x))
    assert not any("sigma" in name for name in silent.state_dict())
    for noisy in (ours, plain):
        noisy.get_submodule("0.noise").sigma.data.fill_(3.0)
        assert not torch.equal(noisy(x), noisy(x))
        assert not torch.equal(noisy.state_dict()["1.noise.sigma"], before["1.noise.sigma"])  # it has learned
    torch.manual_seed(1)
    one = plain(x)
    torch.manual_seed(1)
    assert torch.equal(one, plain(x))  # torch's generator makes its noise, and not noiseprop's stream


def test_all_runs_the_checkout_s_benchmarks_and_says_where_they_are_not_there(monkeypatch, capsys, tmp_path):
    import subprocess

    ran = []
    code = [0, 1]

    def run(command, check):
        ran.append(command[1])
        return subprocess.CompletedProcess(command, code.pop(0))

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["bench", "--all"]) == 0
    assert ran[0].endswith("/benchmarks/run.py")
    assert main(["bench", "--all"]) == 1
    assert "a benchmark failed; see above" in capsys.readouterr().err
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    assert main(["bench", "--all"]) == 1
    assert "are in its checkout, not in the package" in capsys.readouterr().err
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "MLP"], "MLP has no noise, so there is nothing to time"),
        (["--seconds", "0"], "give numbers above 0"),
        (["--seconds", "nan"], "give numbers above 0"),
        (["--batch-size", "0"], "give numbers above 0"),
    ],
)
def test_bad_input_is_one_sentence(options, says, capsys):
    assert main(["bench", *options]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
