"""What a resumed run takes from its folder, and what it refuses."""

import json
import os
import signal
import stat
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from noiseprop.errors import NoisepropWarning, RunError
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import add_checksum
from noiseprop.models import mlp
from noiseprop.models.config import PythonModelConfig
from noiseprop.training import Recipe, fast, train
from noiseprop.training.run_config import RunSettings, describe_data
from noiseprop.training.run_folder import open_run, read_config

RECIPE = Recipe(epochs=2, batch_size=32, lr=1e-2)


def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp((36, 8, 3))


def settings_of(parts, **changes):
    model = PythonModelConfig("MLP")
    return RunSettings(**({"model": model, "data": describe_data(parts), "recipe": RECIPE, "seed": 0} | changes))


class Stop(Exception):  # noqa: N818 - nothing is wrong
    """Raised in the middle of an epoch."""


def stopped_in_epoch_2(parts, folder):
    def progress(step, total, loss):
        if step > total // 2:
            raise Stop

    with pytest.raises(Stop):
        train(network(), parts, RECIPE, folder, progress=progress)


def threads_while_training(parts, folder):
    """How many threads torch has inside a resumed training."""
    net, seen = network(), set()
    train(net, parts, RECIPE, folder, resume=True, progress=lambda *_: seen.add(torch.get_num_threads()))
    return seen


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(add_checksum(config)))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("begun", "now"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_the_threads_it_began_with(thirds, tmp_path, monkeypatch, threads, begun, now):
    monkeypatch.setattr("noiseprop.training.resume.count_cores", lambda: 2)
    threads(begun)
    stopped_in_epoch_2(thirds, tmp_path / "run")
    threads(now)
    assert threads_while_training(thirds, tmp_path / "run") == {begun}
    assert torch.get_num_threads() == now
    assert read_config(tmp_path / "run").made_with.threads == begun


def test_more_threads_than_cores_are_told(thirds, tmp_path, monkeypatch, threads):
    threads(2)
    stopped_in_epoch_2(thirds, tmp_path / "run")
    threads(1)
    monkeypatch.setattr("noiseprop.training.resume.count_cores", lambda: 1)
    with pytest.warns(
        NoisepropWarning, match=r"run resumes, but not bit-identically: it began with 2 threads \(cores here: 1\)$"
    ):
        assert threads_while_training(thirds, tmp_path / "run") == {1}


@pytest.mark.parametrize(
    ("key", "other"), [("torch", "2.6.0"), ("numba", "0.60.0"), ("noiseprop", "0.0.1"), ("processor", "abacus")]
)
def test_another_machine_is_told_and_not_refused(thirds, tmp_path, key, other):
    stopped_in_epoch_2(thirds, tmp_path / "run")
    rewrite(tmp_path / "run", lambda config: config["made_with"].update({key: other}))
    here = read_config(tmp_path / "run").made_with
    with pytest.warns(NoisepropWarning, match=f"it began with {key} {other} ") as told:
        assert len(train(network(), thirds, RECIPE, tmp_path / "run", resume=True)) == 2
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert getattr(here, key) == other
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to do with other bits
        train(network(), thirds, RECIPE, tmp_path / "run", resume=True)


@pytest.mark.parametrize("made", [None, 5, {"threads": "many", "torch": 2}])
def test_a_config_that_does_not_tell_the_machine_is_damaged(thirds, tmp_path, made):
    stopped_in_epoch_2(thirds, tmp_path / "run")
    rewrite(tmp_path / "run", lambda config: config.update(made_with=made))
    with pytest.raises(RunError, match=r"config\.json is damaged .*\$\.made_with"):
        train(network(), thirds, RECIPE, tmp_path / "run", resume=True)


def test_a_run_without_a_checkpoint_begins_on_this_machine(thirds, tmp_path):
    (tmp_path / "run").mkdir()
    train(network(), thirds, RECIPE, tmp_path / "run")
    for name in ("state.safetensors", "model.safetensors", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    rewrite(tmp_path / "run", lambda config: config["made_with"].update(torch="2.6.0"))
    train(network(), thirds, RECIPE, tmp_path / "run", resume=True)
    assert read_config(tmp_path / "run").made_with.torch == torch.__version__


@pytest.mark.parametrize("schedule", ["constant", "steps"])
def test_more_epochs_end_with_the_bits_of_a_run_that_had_them_from_the_start(thirds, tmp_path, schedule):
    recipe = replace(RECIPE, schedule=schedule)
    train(network(), thirds, recipe, tmp_path / "run")
    history = train(network(), thirds, replace(recipe, epochs=5), tmp_path / "run", resume=True)
    train(network(), thirds, replace(recipe, epochs=5), tmp_path / "whole")
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5]
    for name in ("model.safetensors", "state.safetensors"):
        a, b = load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_config(tmp_path / "run") == read_config(tmp_path / "whole")


def test_fewer_epochs_and_a_planned_learning_rate_are_refused(thirds, tmp_path):
    train(network(), thirds, RECIPE, tmp_path / "run")
    with pytest.raises(RunError, match="was planned for 2 epochs, got 1; request at least 2"):
        train(network(), thirds, replace(RECIPE, epochs=1), tmp_path / "run", resume=True)
    train(network(), thirds, fast("mnist", 1), tmp_path / "fast")
    before = (tmp_path / "fast" / "config.json").read_bytes()
    with pytest.raises(RunError, match="cannot resume for 2 epochs: its one-cycle learning rate was planned for 1"):
        train(network(), thirds, fast("mnist", 2), tmp_path / "fast", resume=True)
    assert (tmp_path / "fast" / "config.json").read_bytes() == before


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("what", ["images", "labels"])
def test_other_data_of_the_same_name_and_size_are_refused(thirds, tmp_path, part, what):
    stopped_in_epoch_2(thirds, tmp_path / "run")
    values = getattr(getattr(thirds, part), what).clone()
    values.view(-1)[3] = (values.view(-1)[3] + 1) % 3
    other = replace(thirds, **{part: replace(getattr(thirds, part), **{what: values})})
    with pytest.raises(RunError, match="was trained on other data: the images or labels of this mnist are not"):
        train(network(), other, RECIPE, tmp_path / "run", resume=True)
    assert len(train(network(), thirds, RECIPE, tmp_path / "run", resume=True)) == 2


def test_what_a_kill_left_of_the_first_write_does_not_take_the_folder(thirds, tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"format": 1, "sett')
    open_run(tmp_path, settings_of(thirds), resume=False)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_file_has_the_mode_that_the_umask_asks_for(thirds, tmp_path, mask):
    before = os.umask(mask)
    try:
        train(network(), thirds, replace(RECIPE, epochs=1), tmp_path / "run")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run").iterdir() if p.name != ".lock"}
    assert len(modes) == 4
    assert set(modes.values()) == {0o666 & ~mask}


def test_an_error_of_the_system_without_words_is_told(tmp_path):
    def fails(aside):
        raise OSError("the disk hums")

    with pytest.raises(RunError, match=r"could not be written \(the disk hums\)"):
        write_aside(tmp_path / "x", fails)


TRAINS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import made_up
from noiseprop.data import Split
from test_resume import RECIPE, network
from noiseprop.training import train

thirds = Split(made_up(150, 1), made_up(40, 2), made_up(40, 3), seed=7, ratio=(5, 1, 1))
def waits(*_):
    print("at work", flush=True)
    time.sleep(60)
train(network(), thirds, RECIPE, Path(sys.argv[1]), progress=waits)
"""


def test_a_second_process_is_refused_and_a_killed_one_blocks_nothing(thirds, tmp_path):
    script = TRAINS.format(tests=os.path.dirname(__file__))
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "run"], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout.readline() == b"at work\n"
            with pytest.raises(RunError, match="another process is at work there; wait for it or stop it"):
                train(network(), thirds, RECIPE, tmp_path / "run", resume=True)
        finally:
            first.send_signal(signal.SIGKILL)
    assert (tmp_path / "run" / ".lock").exists()
    assert len(train(network(), thirds, RECIPE, tmp_path / "run", resume=True)) == 2


def test_a_folder_of_other_things_gets_no_lock(thirds, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds other files than a run"):
        train(network(), thirds, RECIPE, tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
