"""Check that the harness counts executions and finds each defect of a reader."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, time
from tests.fuzz import __main__ as harness
from tests.fuzz.readers import Reader, scratch

def lets_an_error_through(data): {}[data] if len(data) > 3 else None
def takes_memory(data): len(data) > 3 and bytes(3 << 30)
def takes_time(data): len(data) > 3 and time.sleep(60)
def leaves_a_file(data): (scratch() / "left").touch() if len(data) > 3 else None
def is_sound(data): len(data)

harness.SECONDS = 2
for read in (lets_an_error_through, takes_memory, takes_time, leaves_a_file, is_sound):
    run = harness.fuzz(Reader(read.__name__, "bytes", lambda: [b"ab"], read), 20_000, 0, 1)
    (scratch() / "left").unlink(missing_ok=True)
    print(json.dumps(run), flush=True)
"""


@pytest.mark.slow
def test_the_harness_finds_each_defect(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    runs = {run["reader"]: run for run in map(json.loads, ended.stdout.splitlines())}
    assert {name: run["crashes"] for name, run in runs.items()} == {
        "lets_an_error_through": 1,
        "takes_memory": 1,
        "takes_time": 1,
        "leaves_a_file": 1,
        "is_sound": 0,
    }, ended.stderr
    assert runs["is_sound"]["executions"] == 20_000
    for path in (ROOT / "build" / "fuzz").glob("*"):
        if path.name.startswith(tuple(runs)):
            path.unlink()
