"""One process at a time in a folder; the lock of a killed one does not stay."""

import signal

import pytest
from tests.faults.runs import same
from tests.faults.table import ON, TOLD

from noiseprop.cli import main

pytestmark = pytest.mark.slow


def test_a_run_folder(children, train, evaluate, undisturbed, tmp_path, few, capsys, faults):
    folder, whole = tmp_path / "run", undisturbed.evaluated(3)
    commands = {"train": train(folder, 3), "evaluate": evaluate(folder)}
    for command, sign in (("train", "metrics.jsonl"), ("evaluate", "evaluation.partial.jsonl")):
        child = children.start(*commands[command]).at((folder / sign).exists)
        child.send(signal.SIGSTOP)
        for second in commands.values():
            assert main(list(map(str, second))) == 1
            said = capsys.readouterr().err
            assert said == f"noiseprop: {folder}: another process is at work there; wait for it or stop it\n"
            faults.add("lock", TOLD)
        child.send(signal.SIGKILL)
        assert child.end().code == -signal.SIGKILL
        assert (folder / ".lock").exists()
        assert children.run(*commands[command]).code == 0
        faults.add("lock-killed", ON)
    assert same(folder, whole, "evaluation.json")


def test_a_folder_of_reproductions(children, reproduce, tmp_path, few, capsys, faults):
    command = reproduce(tmp_path / "runs", tmp_path / "out")
    child = children.start(*command).at((tmp_path / "runs" / ".lock").exists)
    assert main(list(map(str, command))) == 1
    sentence = "another `noiseprop reproduce` is running there; wait for it or stop it"
    assert capsys.readouterr().err == f"noiseprop: {tmp_path / 'runs'}: {sentence}\n"
    faults.add("lock", TOLD)
    child.send(signal.SIGKILL)
    assert child.end().code == -signal.SIGKILL
