"""A disk that is full at any write: one sentence, nothing half-written, and the same bits once there is space.

The disk is a small tmpfs where this process may mount one, and a quota on the size of files everywhere.
"""

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.faults.runs import cached, same
from tests.faults.table import TOLD_ON

pytestmark = pytest.mark.slow
PAGE = os.sysconf("SC_PAGE_SIZE")


class Small:
    """A tmpfs that has as many free pages as it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={PAGE}", "tmpfs", path], check=True)
        (path / "used").write_text(".")  # for a size of 0 means no limit

    def leave(self, pages: int) -> None:
        disk = os.statvfs(self.path)
        size = (disk.f_blocks - disk.f_bfree) * disk.f_frsize + pages * PAGE
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def empty(self) -> Path:
        """A new folder on it, with much space."""
        self.leave(10_000)
        shutil.rmtree(self.path / "folder", ignore_errors=True)
        (self.path / "folder").mkdir()
        return self.path / "folder"


def may_mount() -> bool:
    """Whether a tmpfs can be mounted here."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


mounted = pytest.mark.skipif(not may_mount(), reason="no right to mount a tmpfs; the tests with a quota run anyway")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    small = Small(tmp_path_factory.mktemp("disk"))
    yield small
    subprocess.run(["umount", small.path], check=True)


def pages(path: Path) -> int:
    return math.ceil(path.stat().st_size / PAGE)


KINDS = {
    "config.json": "full-config",
    "metrics.jsonl": "full-metrics",
    "state.safetensors": "full-state",
    "model.safetensors": "full-model",
    "evaluation.partial.jsonl": "full-partial",
    "evaluation.json": "full-evaluation",
    "noise.png": "full-inspect",
    "noise.safetensors": "full-inspect",
    "table3-paper-fast-30.json": "full-results",
}


def unwritten(sentence: str) -> str:
    """The name of the file that an error is about."""
    found = re.search(r"(\S+) could not be written \(.*(No space left on device|File too large)", sentence)
    assert found, sentence
    assert re.search(r"; free space", sentence)
    return Path(found[1]).name


@mounted
def test_a_training_on_a_small_disk(disk, children, train, undisturbed, faults):
    """So many free pages that each of the files of the first two epochs is the one that does not fit."""
    whole = undisturbed.run(2)
    config, metrics, state, model = (
        pages(whole / name) for name in ("config.json", "metrics.jsonl", "state.safetensors", "model.safetensors")
    )
    first = config + metrics + state
    free = {0: "config.json", config: "metrics.jsonl", config + metrics: "state.safetensors"}
    free |= {first - 1: "state.safetensors", first: "model.safetensors", first + model - 1: "model.safetensors"}
    free |= {first + model: "state.safetensors", first + model + state - 1: "state.safetensors"}
    for number, name in free.items():
        folder = disk.empty() / "run"
        folder.mkdir()
        disk.leave(number)
        assert unwritten(children.run(*train(folder, 2)).told()) == name
        assert not list(folder.glob(".*.tmp"))
        disk.leave(10_000)
        assert children.run(*train(folder, 2)).code == 0
        assert same(folder, whole)
        faults.add(KINDS[name], TOLD_ON)


def test_a_training_with_a_quota(children, train, undisturbed, tmp_path, faults):
    one, two = undisturbed.run(1), undisturbed.run(2)
    size = {path.name: path.stat().st_size for path in two.iterdir()}
    for begun, limit, name in (
        (False, 100, "config.json"),
        (False, size["model.safetensors"], "state.safetensors"),
        (True, size["model.safetensors"] - 1, "model.safetensors"),
        (True, size["state.safetensors"] - 1, "state.safetensors"),
    ):
        folder = tmp_path / "run"
        if begun:
            shutil.copytree(one, folder)
        assert unwritten(children.run(*train(folder, 2), limit=limit).told()) == name
        assert not list(folder.glob(".*.tmp"))
        assert children.run(*train(folder, 2)).code == 0
        assert same(folder, two)
        shutil.rmtree(folder)
        faults.add(KINDS[name], TOLD_ON)


@mounted
def test_an_evaluation_on_a_small_disk(disk, children, evaluate, undisturbed, faults):
    whole = undisturbed.evaluated(3)
    for free, name in ((0, "evaluation.partial.jsonl"), (1, "evaluation.partial.jsonl"), (0, "evaluation.json")):
        folder = disk.empty() / "run"
        if name == "evaluation.json":
            undisturbed.measured(3, folder)
        else:
            undisturbed.unjudged(3, folder)
        disk.leave(free)
        assert unwritten(children.run(*evaluate(folder)).told()) == name
        disk.leave(10_000)
        assert children.run(*evaluate(folder)).code == 0
        assert same(folder, whole, "evaluation.json")
        faults.add(KINDS[name], TOLD_ON)


def test_an_evaluation_with_a_quota(children, evaluate, undisturbed, tmp_path, faults):
    whole = undisturbed.evaluated(3)
    begun = {"evaluation.partial.jsonl": undisturbed.unjudged, "evaluation.json": undisturbed.measured}
    for name, begin in begun.items():
        folder = begin(3, tmp_path / name)
        assert unwritten(children.run(*evaluate(folder), limit=100).told()) == name
        assert children.run(*evaluate(folder)).code == 0
        assert same(folder, whole, "evaluation.json")
        faults.add(KINDS[name], TOLD_ON)


def test_an_inspection_with_a_quota(children, digits, undisturbed, tmp_path, faults):
    command = ("inspect", tmp_path / "run", "--batches", 3, "--data-dir", digits)
    shutil.copytree(undisturbed.run(3), tmp_path / "run")
    assert children.run(*command).code == 0
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("noise.png", "noise.safetensors")}
    larger = max(before, key=lambda name: len(before[name]))
    for limit, name in ((100, "noise.png"), (len(before[larger]) - 1, larger)):
        assert unwritten(children.run(*command, limit=limit).told()) == name
        assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
        faults.add("full-inspect", TOLD_ON)
    assert same(tmp_path / "run", undisturbed.run(3))


def test_a_results_file_with_a_quota(children, reproduce, reproduced, tmp_path, faults):
    (path,) = (reproduced / "out").glob("*.json")
    command = reproduce(reproduced / "runs", tmp_path)
    for limit in (100, path.stat().st_size - 1):
        assert unwritten(children.run(*command, limit=limit).told()) == path.name
        assert not (tmp_path / path.name).exists()
        assert children.run(*command).code == 0
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
        (tmp_path / path.name).unlink()
        faults.add("full-results", TOLD_ON)


def test_a_worker_with_a_quota(children, reproduce, reproduced, tmp_path, faults):
    folder = Path("runs", "paper-mnist-fast-30", "mlpn-relu-seed0")
    command = reproduce(tmp_path / "runs", tmp_path / "out")
    limit = (reproduced / folder / "state.safetensors").stat().st_size - 1
    assert unwritten(children.run(*command, limit=limit).told()) == "state.safetensors"
    assert children.run(*command).code == 0
    assert same(tmp_path / folder, reproduced / folder, "evaluation.json")
    faults.add("full-worker", TOLD_ON)


def decoding_does_not_fit(ended, cache: Path, why: str) -> None:
    said = rf"the cache of decoded images cannot be written \({why}\); free \d+ MB or set XDG_CACHE_HOME"
    assert re.search(said, ended.told())
    assert cached(cache) == {}


@mounted
def test_the_cache_of_decoded_images_on_a_small_disk(disk, children, pictures, decoded, faults):
    """No room for any image, the last one, the index."""
    images = math.ceil(len([*decoded.values()][1]) / PAGE)
    for free in (0, images - 1, images):
        cache = disk.empty()
        load = {"do": "load", "cache": cache}
        disk.leave(free)
        decoding_does_not_fit(children.run("tiny-imagenet", pictures, **load), cache, "No space left on device")
        disk.leave(10_000)
        assert children.run("tiny-imagenet", pictures, **load).code == 0
        assert cached(cache) == decoded
        faults.add("full-cache", TOLD_ON)


def test_the_cache_of_decoded_images_with_a_quota(children, pictures, decoded, tmp_path, faults):
    images = len([*decoded.values()][1])
    for limit in (100, images - 1):
        cache = tmp_path / str(limit)
        load = {"do": "load", "cache": cache}
        decoding_does_not_fit(children.run("tiny-imagenet", pictures, limit=limit, **load), cache, "File too large")
        assert children.run("tiny-imagenet", pictures, **load).code == 0
        assert cached(cache) == decoded
        faults.add("full-cache", TOLD_ON)


def test_what_is_printed_does_not_fit(children, train, evaluate, undisturbed, tmp_path, faults):
    whole, folder = undisturbed.evaluated(3), tmp_path / "run"
    for command, names in ((train(folder, 3), ()), (evaluate(folder), ())):
        said = children.run(*command, stdout="/dev/full").told()
        assert "No space left on device" in said
        assert same(folder, whole, *names)
        faults.add("full-stdout", TOLD_ON)
    assert children.run(*evaluate(folder)).code == 0
    assert same(folder, whole, "evaluation.json")
