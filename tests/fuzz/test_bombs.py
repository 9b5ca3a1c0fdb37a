"""Hostile files are refused in a sentence, within a bound of memory and within seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.bombs import BOMBS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, object]]:
    """Read each bomb in a process whose memory can be limited."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {one["says"]: one for one in map(json.loads, ended.stdout.splitlines())}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.says)
def test_a_bomb_is_refused_within_its_bound(bomb, outcomes):
    found = outcomes[bomb.says]
    assert found["seconds"] != -1, f"reading it takes more than {bomb.most} MB"
    assert found["sentence"], "it was read"
    assert "\n" not in found["sentence"]
    assert len(found["sentence"]) < 600
    assert found["seconds"] < 10
