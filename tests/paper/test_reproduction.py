import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from noiseprop.data import load, split
from noiseprop.errors import RunError
from noiseprop.evaluation.settings import known_settings
from noiseprop.paper import run_job as run_job_module
from noiseprop.paper import specs
from noiseprop.paper.job import Job
from noiseprop.paper.run_job import EVALUATION, TEST_ACCURACY, read_finished, run_job, train_network
from noiseprop.paper.specs import PROTOCOLS, Protocol, Row, choose_protocol
from noiseprop.training import loss_and_accuracy
from noiseprop.training.checkpoint import MODEL

FEW = replace(
    known_settings("mnist-5k"),
    conditions=("clean", "fgsm", "lbfgs", "lbfgs-transfer", "contrast"),
    attack_draws=(1, 2),
    vote_draws=4,
    attack_images=40,
    trust_images=8,
)


def quiet(done: int, total: int, what: str) -> None:
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All jobs here share one surrogate."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(root: Path, row: Row | None = None, chosen: Protocol | None = None, seed: int = 0, epochs: int = 2) -> Job:
    chosen = chosen or PROTOCOLS["paper"]
    return Job(row or Row("MLPN"), seed, chosen, "mnist-5k", None, epochs, "fp32", FEW, root)


def kept(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (MODEL, EVALUATION, TEST_ACCURACY)}


@pytest.fixture(scope="module")
def undisturbed(root) -> Job:
    torch.set_num_threads(1)
    this = job(root)
    run_job(this, quiet)
    return this


def test_a_run_keeps_what_its_record_needs(undisturbed):
    run = read_finished(undisturbed)
    assert undisturbed.folder.name == "mlpn-relu-seed0"
    assert undisturbed.folder.parent.name == "paper-mnist-5k"
    assert [epoch.epoch for epoch in run.epochs] == [1, 2]
    assert run.evaluation.about["model"] == "MLPN"
    assert run.evaluation.about["epochs"] == 2
    assert {m.condition for m in run.evaluation.measurements} == set(FEW.conditions)
    assert {m.attack_draws for m in run.evaluation.measurements if m.condition == "lbfgs"} == {0, 1, 2}
    # the last epoch's test accuracy is that of the network which was judged, but for the draw of its noise
    assert abs(run.test_accuracy[-1] - run.evaluation.accuracy("clean")) < 0.05


def test_measuring_test_accuracy_leaves_no_trace(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(run_job_module, "FIGURE_3", ())
    this = replace(undisturbed, root=tmp_path)
    train_network(this, quiet)
    assert not (this.folder / TEST_ACCURACY).exists()
    assert (this.folder / MODEL).read_bytes() == (undisturbed.folder / MODEL).read_bytes()


@pytest.mark.parametrize("moment", ["first epoch", "second epoch", "fgsm", "contrast 3", "check transfer"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(moment, undisturbed, root, tmp_path):
    this = replace(undisturbed, root=tmp_path)
    (tmp_path / "surrogates").symlink_to(root / "surrogates")

    def stop(done: int, total: int, what: str) -> None:
        epoch = 1 if done <= total // 2 else 2
        if what.startswith("training, ") and moment == {1: "first epoch", 2: "second epoch"}[epoch]:
            raise KeyboardInterrupt
        if what.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(this, stop)
    with pytest.raises(RunError, match="the run is not finished; run the same `noiseprop reproduce` again"):
        read_finished(this)
    run_job(this, quiet)
    assert kept(this.folder) == kept(undisturbed.folder)


def test_what_is_finished_is_not_done_again(undisturbed, monkeypatch):
    before = kept(undisturbed.folder)
    monkeypatch.setattr(run_job_module, "evaluate", None)
    monkeypatch.setattr(run_job_module, "load_surrogate", None)
    run_job(undisturbed, quiet)
    assert kept(undisturbed.folder) == before


def test_a_damaged_evaluation_is_made_again_and_another_setting_is_judged_anew(undisturbed):
    before = kept(undisturbed.folder)
    path = undisturbed.folder / EVALUATION
    path.write_bytes(before[EVALUATION][:-100])
    run_job(undisturbed, quiet)
    assert kept(undisturbed.folder) == before
    run_job(replace(undisturbed, settings=replace(FEW, attack_images=20)), quiet)
    assert path.read_bytes() != before[EVALUATION]
    run_job(undisturbed, quiet)
    assert kept(undisturbed.folder) == before


def test_a_folder_of_other_settings_is_refused(undisturbed):
    with pytest.raises(RunError, match="was planned for 2 epochs, got 1; request at least 2"):
        run_job(replace(undisturbed, epochs=1), quiet)


def test_damaged_test_accuracies_are_one_sentence(undisturbed):
    path = undisturbed.folder / TEST_ACCURACY
    text = path.read_text()
    for damage in ("{", "[1]", '{"one": 1}'):
        path.write_text(damage)
        with pytest.raises(RunError, match="is damaged"):
            read_finished(undisturbed)
    path.write_text(text)


def test_early_stopping_ends_with_the_first_epoch_above_the_limit(root, monkeypatch):
    monkeypatch.setattr(specs, "_STOP_ABOVE", 0.75)
    this = job(root, Row("MLP"), choose_protocol("paper", ["early-stopping"]), epochs=9)
    run_job(this, quiet)
    run = read_finished(this)
    stopped = len(run.epochs)
    assert 1 < stopped < 9
    assert run.test_accuracy[-1] > 0.75 >= max(run.test_accuracy[:-1])
    as_many = job(root, Row("MLP"), epochs=stopped)
    run_job(as_many, quiet)
    assert (this.folder / MODEL).read_bytes() == (as_many.folder / MODEL).read_bytes()
    before = kept(this.folder)
    run_job(this, quiet)
    assert kept(this.folder) == before


def test_the_released_code_runs_as_a_whole(root):
    this = job(root, Row("MLPN"), PROTOCOLS["released-code"])
    this = replace(this, settings=replace(FEW, attack_draws=(1,)))
    run_job(this, quiet)
    evaluation = read_finished(this).evaluation
    assert evaluation.settings == this.settings
    lbfgs = {m.key for m in evaluation.measurements if m.condition.startswith("lbfgs")}
    assert lbfgs == {
        ("lbfgs", "off", 0, 0),
        ("lbfgs", "one", 1, 0),
        ("lbfgs", "vote", 1, 0),
        ("lbfgs-transfer", "off", 0, 0),
        ("lbfgs-transfer", "one", 0, 0),
        ("lbfgs-transfer", "vote", 0, 0),
    }
    assert json.loads((this.folder / "config.json").read_text())["settings"]["extra"]["departures"]
    model, epochs = train_network(this, quiet)
    assert epochs == 2
    measured = loss_and_accuracy(model, split(load("mnist-5k")).test)[1]
    assert abs(measured - evaluation.accuracy("clean")) < 0.05
