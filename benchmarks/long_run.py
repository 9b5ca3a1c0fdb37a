"""Check that long training and evaluation leak no memory, file handles or temporary files."""

import gc
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import write_figures
from noiseprop.data import load, split
from noiseprop.evaluation import evaluate
from noiseprop.evaluation.serialization import write_evaluation as write_evaluation
from noiseprop.evaluation.settings import known_settings
from noiseprop.paper import build
from noiseprop.training import Recipe, train

STEPS, EVALUATIONS, SAMPLES = 5_000, 50, 10
IMAGES = 100
FEW = {"attack_images": 40, "trust_images": 16, "vote_draws": 4, "attack_draws": (1, 2)}
"""Numbers of images and draws of each evaluation, for all conditions."""


class ResourceMonitor:
    """Samples of the resources of this process, at equal intervals of its work."""

    def __init__(self, unit: str, total: int, folder: Path) -> None:
        self.unit, self.every, self.folder = unit, total // SAMPLES, folder
        self.samples: list[dict[str, Any]] = []

    def __call__(self, done: int) -> None:
        """Take a sample if the next one is due."""
        if done < self.every * (len(self.samples) + 1):
            return
        gc.collect()
        handles = len(os.listdir("/proc/self/fd"))
        temporary = len(list((self.folder / "tmp").iterdir())) + len(list((self.folder / "run").glob("*.tmp")))
        sample = {"done": done, "memory": _measure_memory(), "handles": handles, "temporary": temporary}
        self.samples.append(sample)
        print(f"{done:6} {self.unit}: {sample['memory']:.1f} MB, {handles} file handles, {temporary} temporary files")


def _measure_memory() -> float:
    """Return the resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Train and evaluate an MLPN on 5,000 digits in a run folder."""
    parts = split(load("mnist-5k"))
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), build("MLPN", seed=0)
        (folder / "tmp").mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")  # so that only this process writes there
        recipe = Recipe()
        per_epoch = -(-len(parts.train) // recipe.batch_size)
        training = ResourceMonitor("steps", STEPS, folder)
        recipe = replace(recipe, epochs=-(-STEPS // per_epoch))
        train(model, parts, recipe, folder / "run", progress=lambda done, total, loss: training(done))
        evaluating = ResourceMonitor("evaluations", EVALUATIONS, folder)
        settings = replace(known_settings("mnist-5k"), **FEW)
        surrogate = build("MLP-surrogate", seed=0)
        checkpoint = folder / "run" / "evaluation.partial.jsonl"
        for number in range(1, EVALUATIONS + 1):
            evaluation = evaluate(
                model, parts.test[:IMAGES], settings=settings, surrogate=surrogate, checkpoint=checkpoint
            )
            write_evaluation(evaluation, folder / "run" / "evaluation.json")
            checkpoint.unlink()
            evaluating(number)
    write_figures(
        "long_run", "the same process earlier", {"steps": training.samples, "evaluations": evaluating.samples}
    )


if __name__ == "__main__":
    main()
