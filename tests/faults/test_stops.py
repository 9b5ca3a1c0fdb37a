"""SIGTERM and Ctrl-C: a clean stop with its own exit code, after which the same bits come out."""

import json
import signal

import pytest
from tests.faults.runs import lines, same
from tests.faults.table import ON

pytestmark = pytest.mark.slow
SIGNALS = {"SIGTERM": (signal.SIGTERM, 143), "Ctrl-C": (signal.SIGINT, 130)}
EPOCHS = 40


@pytest.mark.parametrize("name", SIGNALS)
def test_a_training(name, children, train, undisturbed, tmp_path, faults):
    number, code = SIGNALS[name]
    whole, folder = undisturbed.run(EPOCHS), tmp_path / "run"
    child = children.start(*train(folder, EPOCHS)).at(lambda: lines(folder / "metrics.jsonl") >= 3)
    child.send(number)
    said = child.end().told(code)
    assert said == "noiseprop: stopped; finished epochs are saved, continue with --resume\n"
    assert (folder / "state.safetensors").exists()
    assert 3 <= lines(folder / "metrics.jsonl") < EPOCHS
    assert children.run(*train(folder, EPOCHS)).code == 0
    assert same(folder, whole)
    faults.add(f"{name}-train", f"exit code {code}, {ON}")


@pytest.mark.parametrize("name", SIGNALS)
def test_an_evaluation(name, children, evaluate, undisturbed, tmp_path, faults):
    number, code = SIGNALS[name]
    folder = undisturbed.unjudged(3, tmp_path / "run")
    partial, command = folder / "evaluation.partial.jsonl", evaluate(folder)
    child = children.start(*command).at(lambda: lines(partial) >= 2)
    child.send(number)
    assert child.end().told(code) == "noiseprop: stopped; finished parts are saved, repeat the command to continue\n"
    kept = partial.read_text()
    assert not (folder / "evaluation.json").exists()
    child = children.start(*command).at(lambda: not partial.exists() or len(partial.read_text()) > len(kept))
    assert not partial.exists() or partial.read_text().startswith(kept)  # what was finished is not done again
    assert child.end().code == 0
    assert same(folder, undisturbed.evaluated(3), "evaluation.json")
    faults.add(f"{name}-evaluate", f"exit code {code}, {ON}")


@pytest.mark.parametrize("name", SIGNALS)
def test_a_reproduction(name, children, reproduce, reproduced, tmp_path, faults):
    number, code = SIGNALS[name]
    child = children.start(*reproduce(tmp_path / "runs", tmp_path / "out"))
    folder = tmp_path / "runs" / "paper-mnist-fast-30" / "mlpn-relu-seed0"
    child.at(lambda: lines(folder / "metrics.jsonl") >= 3).send(number)
    assert child.end().told(code) == "noiseprop: stopped; finished parts are saved, repeat the command to continue\n"
    assert lines(folder / "metrics.jsonl") < 30
    assert children.run(*reproduce(tmp_path / "runs", tmp_path / "out")).code == 0
    assert same(folder, reproduced / "runs" / "paper-mnist-fast-30" / folder.name, "evaluation.json")
    results = [
        [
            {key: run[key] for key in ("row", "seed", "course", "scores", "findings")}
            for run in json.loads(next((root / "out").glob("*.json")).read_text())["runs"]
        ]
        for root in (tmp_path, reproduced)
    ]
    assert results[0]
    assert results[0] == results[1]
    faults.add(f"{name}-reproduce", f"exit code {code}, {ON}")
