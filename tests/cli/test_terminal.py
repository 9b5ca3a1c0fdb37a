"""The command in processes of its own: pipes, exit codes, 80 columns, no colours, Ctrl-C, completion."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from noiseprop.cli import COMMANDS

SCRIPT = Path(sys.executable).with_name("noiseprop")
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    np.savez(home / "tiny.npz", x=rng.integers(0, 256, (60, 4, 4), dtype=np.uint8), y=np.arange(60) % 3)
    (home / "tinynets.py").write_text(
        "from torch import nn\n"
        "print('a word on stdout')\n"
        "def net(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))\n"
    )
    return home


def noiseprop(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "80", **more}
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, cwd=home, env=environment, stdin=subprocess.DEVNULL
    )


TRAIN = ("train", "--model", "tinynets:net", "--data", "tiny.npz", "--noise", "linear", "--epochs", "2")


def test_exit_codes_and_streams(home):
    fine = noiseprop(home, *TRAIN, "--out", "runs/a", "--json")
    assert fine.returncode == 0
    assert json.loads(fine.stdout)["epoch"] == 2  # what the network's module prints does not spoil it
    assert fine.stderr == "a word on stdout\n"
    wrong = noiseprop(home, *TRAIN, "--out", "runs/a")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "noiseprop: runs/a holds a run already; continue it with --resume or choose another folder\n"
    for misuse in ((), ("trian",), ("train", "--epochs", "x", "--out", "b")):
        done = noiseprop(home, *misuse)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


def test_parser_errors_read_like_other_errors(home):
    for arguments, expected in (
        (("train", "--modle", "MLP", "--out", "x"), "Unrecognized options: --modle, MLP (did you mean --model?)"),
        (("train",), "requires --out"),
        (("evaluate",), "requires RUN"),
        (("data", "--bogus"), "Unrecognized options: --bogus"),
    ):
        done = noiseprop(home, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"noiseprop: {arguments[0]}: {expected}; see noiseprop {arguments[0]} --help\n"
    said = noiseprop(home, "train", "--epochs", "x", "--out", "b").stderr
    assert said.startswith("noiseprop: train: Error parsing --epochs: ")
    assert said.count("\n") == 1


def test_a_misspelt_command_or_option_is_answered_with_the_near_one(home):
    assert "'trian' is not a command; choose one of demo, train" in noiseprop(home, "trian").stderr
    assert "(did you mean train?)" in noiseprop(home, "trian").stderr
    assert "--model" in noiseprop(home, "train", "--modle", "MLP", "--out", "x").stderr


def test_version(home):
    done = noiseprop(home, "--version")
    assert (done.returncode, done.stdout) == (0, f"noiseprop {version('noiseprop')}\n")


@pytest.mark.parametrize("command", [*((name, "--help") for name in COMMANDS), ("--help",)])
def test_help_has_examples_no_colours_in_a_pipe_and_does_not_wait_for_torch(home, command):
    done = noiseprop(home, *command, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert ESCAPE not in done.stdout
    assert re.search("^ +noiseprop |noiseprop demo", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 80
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "noiseprop.cli" in imported
    assert not imported & {"torch", "numpy", "rich", "matplotlib", "PIL"}


def test_no_color_is_heeded_on_a_terminal_and_80_columns_are_kept(home):
    def drawn(**more: str) -> str:
        """What a training draws on a terminal."""
        leader, follower = pty.openpty()
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color", **more}
        command = [SCRIPT, *TRAIN, "--out", f"runs/{len(more)}"]
        done = subprocess.Popen(command, cwd=home, stdout=follower, stderr=follower, env=environment)
        os.close(follower)
        said = b""
        with suppress(OSError):  # how Linux tells that the other side is closed
            while piece := os.read(leader, 65536):
                said += piece
        os.close(leader)
        assert done.wait() == 0
        return said.decode()

    colours, cursor = re.compile(r"\x1b\[[0-9;]*3[0-9]"), re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")
    assert colours.search(drawn())
    plain = drawn(NO_COLOR="1")
    assert not colours.search(plain)
    lines = [line for part in plain.splitlines() for line in cursor.sub("", part).split("\r")]
    assert any("tinynets:net on tiny.npz" in line and "/10" in line for line in lines)  # the bar
    assert "tinynets:net on tiny.npz, epoch 2:" in lines
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("command", ["noiseprop --help", "noiseprop data", "noiseprop data --json"])
@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_that_leaves_is_no_error(home, command, reader):
    line = f"{command.replace('noiseprop', str(SCRIPT))} | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=home)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_with_one_line_and_the_run_can_go_on(home):
    out = ["--out", "runs/stopped"]
    running = subprocess.Popen(
        [SCRIPT, *TRAIN[:-1], "100000", *out], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = home / "runs" / "stopped" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == "noiseprop: stopped; finished epochs are saved, continue with --resume\n"
    assert metrics.read_text().count("\n") >= 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_every_command(home, shell):
    done = noiseprop(home, "--completion", shell)
    assert done.returncode == 0
    for name in COMMANDS:
        assert name in done.stdout


def test_tab_completes_commands_and_options_in_bash(home):
    script = f"""
eval "$({SCRIPT} --completion bash)"
complete -p noiseprop
COMP_WORDS=(noiseprop tr); COMP_CWORD=1; _tyro_noiseprop; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(noiseprop train --obj); COMP_CWORD=2; _tyro_noiseprop; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=home)
    assert done.stderr == ""
    registered, command, option = done.stdout.splitlines()
    assert registered.startswith("complete ")
    assert command == "train"
    assert option.split() == ["--objective", "--objective-number"]


def test_completion_of_another_shell_is_a_wrong_use(home):
    done = noiseprop(home, "--completion", "tcsh")
    assert (done.returncode, done.stderr) == (2, "noiseprop: --completion takes one of bash, zsh, fish\n")
