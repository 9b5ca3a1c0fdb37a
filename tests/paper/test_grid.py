import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from noiseprop.errors import InputError, RunError
from noiseprop.evaluation.settings import known_settings
from noiseprop.paper import grid
from noiseprop.paper.grid import DONE, run_all
from noiseprop.paper.job import Job
from noiseprop.paper.run_job import EVALUATION, run_job
from noiseprop.paper.specs import PROTOCOLS, Row

FEW = replace(known_settings("mnist-5k"), conditions=("clean", "fgsm"), attack_draws=(1,), vote_draws=2)
FEW = replace(FEW, attack_images=20, trust_images=8)


def jobs(root: Path, epochs: int = 1) -> list[Job]:
    rows = (Row("MLP"), Row("MLPN"))
    return [Job(row, 0, PROTOCOLS["paper"], "mnist-5k", None, epochs, "fp32", FEW, root) for row in rows]


def quiet(*_: object) -> None:
    pass


def test_two_processes_do_what_one_would(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "count_cores", lambda: 2)  # so that each worker has one thread
    ended: list[str] = []

    def show(name: str, done: int, total: int, what: str) -> None:
        if what == DONE:
            ended.append(name)

    run_all(jobs(tmp_path / "a"), processes=2, show=show)
    assert sorted(ended) == ["MLP, ReLU, seed 0", "MLPN, ReLU, seed 0"]
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs(tmp_path / "b"):
            run_job(job, quiet)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(jobs(tmp_path / "a"), jobs(tmp_path / "b"), strict=True):
        for name in (EVALUATION, "model.safetensors"):
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


@pytest.mark.slow
def test_a_failed_job_stops_the_others_and_says_why(tmp_path):
    first, second = jobs(tmp_path)
    first.folder.mkdir(parents=True)
    (first.folder / "mine.txt").write_text("not a run")
    with pytest.raises(RunError, match=r"holds other files than a run \(no config.json\)"):
        run_all([first, replace(second, epochs=500)], processes=2, show=quiet)
    assert not (second.folder / EVALUATION).exists()


def test_one_reproduction_at_a_time_in_a_folder(tmp_path):
    from filelock import FileLock

    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(RunError, match="another `noiseprop reproduce` is running there; wait for it or stop it"),
    ):
        run_all(jobs(tmp_path), processes=1, show=quiet)
    with pytest.raises(InputError, match="--jobs is 0; give 1 or more"):
        run_all(jobs(tmp_path), processes=0, show=quiet)


_COMMAND = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_grid import jobs
from noiseprop.paper.grid import run_all
if __name__ == "__main__":
    run_all(jobs(Path({root!r}), epochs=40), processes=2, show=lambda *_: None)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_the_runs_go_on(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_COMMAND.format(here=str(Path(__file__).parent), root=str(tmp_path / "runs")))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    first, second = jobs(tmp_path / "runs", epochs=40)
    deadline = time.monotonic() + 120
    while not all(_size(job.folder / "metrics.jsonl") for job in (first, second)):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.1)
    workers = _children(parent.pid)
    assert len(workers) >= 2
    os.kill(parent.pid, how)
    parent.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = [len((job.folder / "metrics.jsonl").read_text().splitlines()) for job in (first, second)]
    assert all(0 < n < 40 for n in done)
    run_all([first, second], processes=2, show=quiet)
    undisturbed = jobs(tmp_path / "undisturbed", epochs=40)
    run_all(undisturbed, processes=2, show=quiet)
    for one, other in zip((first, second), undisturbed, strict=True):
        for name in (EVALUATION, "model.safetensors"):
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
