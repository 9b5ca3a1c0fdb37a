"""Runs and their evaluations that nothing has disturbed, and what is compared with them."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.processes import Children

Arguments = tuple[object, ...]


class Undisturbed:
    """Runs of so many epochs, each trained and judged once."""

    def __init__(
        self, root: Path, children: Children, train: Callable[..., Arguments], evaluate: Callable[..., Arguments]
    ) -> None:
        self._root, self._children, self._train, self._evaluate = root, children, train, evaluate
        self.seconds: dict[int, float] = {}  # that so many epochs took

    def run(self, epochs: int) -> Path:
        folder = self._root / str(epochs)
        if not folder.exists():
            start = time.monotonic()
            self._do(*self._train(folder, epochs))
            self.seconds[epochs] = time.monotonic() - start
        return folder

    def evaluated(self, epochs: int) -> Path:
        folder = self.run(epochs)
        if not (folder / "evaluation.json").exists():
            self._do(*self._evaluate(folder))
        return folder

    def unjudged(self, epochs: int, folder: Path) -> Path:
        """A copy whose evaluation has not begun, though it has its surrogate already."""
        return Path(shutil.copytree(self.evaluated(epochs), folder, ignore=shutil.ignore_patterns("evaluation.json")))

    def measured(self, epochs: int, folder: Path) -> Path:
        """One killed when all was measured: the fourth time that evaluation.json's temporary file is touched."""
        self.unjudged(epochs, folder)
        ended = self._children.run(*self._evaluate(folder), die_at=(folder / ".evaluation.json.tmp", 4))
        assert ended.code == -9, ended
        return folder

    def _do(self, *arguments: object) -> None:
        ended = self._children.run(*arguments)
        assert ended.code == 0, ended


def same(folder: Path, other: Path, *more: str) -> bool:
    """Whether two run folders hold the same bits; nothing half-written lies in the first."""
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
    names = ("model.safetensors", "state.safetensors", *more)
    metrics = [
        [json.loads(line) | {"seconds": 0.0, "sha256": ""} for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (folder, other)
    ]
    return metrics[0] == metrics[1] and all(
        (folder / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def cached(cache: Path) -> dict[str, bytes]:
    """What lies in a user's cache, but for locks."""
    files = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


def lines(path: Path) -> int:
    """How many are finished in a file; 0 where there is none."""
    return path.read_text().count("\n") if path.exists() else 0
