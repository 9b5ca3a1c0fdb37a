"""A lost node of a real Ray cluster of several on this machine; tests/paper/ray_nodes.py does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.table import ON

from noiseprop.paper.grid import DONE
from noiseprop.paper.run_job import EVALUATION
from noiseprop.training.checkpoint import MODEL

pytestmark = pytest.mark.slow
PAPER = Path(__file__).parents[1] / "paper"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_a_grid_survives_the_loss_of_a_node(tmp_path, faults):
    """And ends with the same bits as on this machine alone; the lost job has gone on, not begun again."""
    command = [sys.executable, PAPER / "ray_nodes.py", tmp_path]
    # Ray replaces 127.0.0.1 by the machine's other address, unless it thinks that there are firewalls to ask
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    told = said["told"]
    assert sorted(name for name, _, _, what in told if what == DONE) == ["MLP, ReLU, seed 0", "MLPN, ReLU, seed 0"]
    assert [Path(parent).name for parent in said["parents"]] == ["raylet", "raylet"]
    assert set(said["listening"]) <= LOOPBACK

    (lost,) = (title.removeprefix("ray::") for title in said["lost"])
    loss = next(place for place, message in enumerate(told) if message[3] == "a node is lost")
    trained: tuple[list[float], list[float]] = [], []
    for place, (name, at, of, what) in enumerate(told):
        if name == lost and what.startswith("training, "):
            trained[place > loss].append(at / of)
    before, after = trained
    assert 1 / 4 < max(before) < 1
    assert min(after) > 1 / 4
    assert max(after) == 1

    here = sorted(path for name in (EVALUATION, MODEL) for path in (tmp_path / "here").rglob(name))
    assert len(here) == 2 + 3  # the surrogate has no evaluation
    for path in here:
        assert (tmp_path / "cluster" / path.relative_to(tmp_path / "here")).read_bytes() == path.read_bytes()
    faults.add("node", ON)
