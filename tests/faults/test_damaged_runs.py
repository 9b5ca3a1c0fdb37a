"""What commands do about damaged runs: what is sound is used, and nothing finished is replaced by something else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.faults.damage import flipped
from tests.faults.runs import same
from tests.faults.table import AGAIN, TOLD, UNUSED

from noiseprop.cli import main

pytestmark = pytest.mark.slow
EPOCHS = 3

NEXT = {  # what `train --resume` and `evaluate` do about a damaged or missing file of a finished run
    "config.json": (TOLD, TOLD),
    "metrics.jsonl": (TOLD, UNUSED),
    "state.safetensors": (TOLD, UNUSED),
    "model.safetensors": (AGAIN, TOLD),
    "evaluation.json": (UNUSED, AGAIN),
}


@pytest.mark.parametrize("name", NEXT)
@pytest.mark.parametrize("how", ["cut", "flipped", "removed"])
def test_commands(name, how, run, train, evaluate, undisturbed, capsys, faults):
    """What is not damaged is still used, and nothing finished is replaced by something else."""
    whole, judged = undisturbed.run(EPOCHS), (undisturbed.evaluated(EPOCHS) / "evaluation.json").read_bytes()
    path, content = run / name, (run / name).read_bytes()
    commands = (train(run, EPOCHS), evaluate(run))
    for command, expected in zip(commands, NEXT[name], strict=True):
        path.unlink(missing_ok=True)
        if how != "removed":
            path.write_bytes(content[:-5] if how == "cut" else flipped(content, -len(content) // 3, 4))
        others = {other.name: other.read_bytes() for other in run.iterdir() if other != path}
        code, said = main(list(map(str, command))), capsys.readouterr().err
        if expected == TOLD:
            assert code == 1
            assert said.count("\n") == 1
            assert "; " in said  # the next step
            assert str(run) in said
            assert {other.name: other.read_bytes() for other in run.iterdir() if other != path} == others
        else:
            assert code == 0, said
            if expected == UNUSED:
                path.write_bytes(content)
            assert same(run, whole)
            if command[0] == "evaluate":
                assert (run / "evaluation.json").read_bytes() == judged
        fault = f"damage-{name.partition('.')[0]}"
        faults.add(fault, expected)
        path.write_bytes(content)


@pytest.mark.parametrize("files", [("model.safetensors",), ("model.safetensors", "state.safetensors")])
@pytest.mark.parametrize("how", ["flipped", "removed"])
def test_the_cached_surrogate(files, how, run, evaluate, home, undisturbed, capsys, faults):
    """Its checkpoint has the network too; where both are damaged that is told, where both are gone it trains again."""
    (folder,) = (path for path in (home / "noiseprop" / "surrogates").iterdir() if path.is_dir())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in files:
        (folder / name).unlink()
        if how == "flipped":
            (folder / name).write_bytes(flipped(before[name], len(before[name]) // 2, 16))
    (run / "evaluation.json").unlink()
    code, said = main(list(map(str, evaluate(run)))), capsys.readouterr().err
    if len(files) == 1:
        assert code == 0, said
        judged = (undisturbed.evaluated(EPOCHS) / "evaluation.json").read_bytes()
        assert (run / "evaluation.json").read_bytes() == judged
        assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]
    else:
        assert code == 1
        assert said.count("\n") == 1
        assert f"move {folder} away and train again" in said
    for name, content in before.items():
        (folder / name).write_bytes(content)
    faults.add("damage-surrogate", AGAIN if len(files) == 1 else TOLD)


@pytest.mark.parametrize("name", ["test_accuracy.json", "evaluation.json", "model.safetensors", "metrics.jsonl"])
def test_a_reproduction(name, children, reproduce, reproduced, tmp_path, faults):
    """Where its results file is gone too, what is left of the run is made again or told."""
    root = Path(shutil.copytree(reproduced, tmp_path / "copy"))
    path = root / "runs" / "paper-mnist-fast-30" / "mlpn-relu-seed0" / name
    (record,) = (root / "out").glob("*.json")
    content, text = path.read_bytes(), record.read_text()
    fault = {"test_accuracy.json": "damage-accuracy"}.get(name, f"damage-{name.partition('.')[0]}")
    for how in ("flipped", "removed"):
        record.unlink(missing_ok=True)
        path.unlink()
        if how == "flipped":
            path.write_bytes(flipped(content, len(content) // 2, 2))
        ended = children.run(*reproduce(root / "runs", root / "out"))
        if name in ("test_accuracy.json", "metrics.jsonl"):
            said = ended.told()
            assert str(path.parent) in said
            assert "train again" in said
            assert not record.exists()
            faults.add(fault, TOLD)
        else:  # the results need no weights; an evaluation is made again
            assert ended.code == 0, ended
            assert _scores(record.read_text()) == _scores(text)
            if name == "evaluation.json":
                assert path.read_bytes() == content
                faults.add(fault, AGAIN)
        path.write_bytes(content)


def _scores(text):
    return [run["scores"] for run in json.loads(text)["runs"]]


def test_a_damaged_results_file_is_not_written_over(children, reproduce, reproduced, tmp_path, faults):
    (original,) = (reproduced / "out").glob("*.json")
    path = Path(shutil.copy(original, tmp_path))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content), size=5):
        other = flipped(content, place, 8)
        path.write_bytes(other)
        said = children.run(*reproduce(reproduced / "runs", tmp_path)).told()
        assert "restore an intact copy, or move it away and run `noiseprop reproduce` again" in said
        assert path.read_bytes() == other
        faults.add("damage-results", TOLD)
    path.unlink()
    assert children.run(*reproduce(reproduced / "runs", tmp_path)).code == 0
    assert path.read_bytes() == content
    faults.add("damage-results", AGAIN)
