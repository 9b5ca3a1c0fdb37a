"""Whether a process that trains and judges for long holds ever more: memory, file handles, temporary files."""

import gc
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import write
from noiseprop.data import load, split
from noiseprop.evaluation import evaluate
from noiseprop.evaluation.serialization import write_evaluation as write_evaluation
from noiseprop.evaluation.settings import known_settings
from noiseprop.paper import build
from noiseprop.training import Recipe, train

STEPS, EVALUATIONS, SAMPLES = 5_000, 50, 10
IMAGES = 100
FEW = {"attack_images": 40, "trust_images": 16, "vote_draws": 4, "attack_draws": (1, 2)}
"""What each evaluation measures, under all conditions."""


class Watch:
    """Looks at this process a few times."""

    def __init__(self, what: str, total: int, folder: Path) -> None:
        self.what, self.every, self.folder = what, total // SAMPLES, folder
        self.samples: list[dict[str, Any]] = []

    def __call__(self, done: int) -> None:
        """Look, if it is time for it."""
        if done < self.every * (len(self.samples) + 1):
            return
        gc.collect()
        handles = len(os.listdir("/proc/self/fd"))
        temporary = len(list((self.folder / "tmp").iterdir())) + len(list((self.folder / "run").glob("*.tmp")))
        sample = {"done": done, "memory": _resident(), "handles": handles, "temporary": temporary}
        self.samples.append(sample)
        print(f"{done:6} {self.what}: {sample['memory']:.1f} MB, {handles} file handles, {temporary} temporary files")


def _resident() -> float:
    """Resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Train and judge an MLPN on 5,000 digits in a run folder."""
    parts = split(load("mnist-5k"))
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), build("MLPN", seed=0)
        (folder / "tmp").mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")  # for what this process alone puts there
        recipe = Recipe()
        per_epoch = -(-len(parts.train) // recipe.batch_size)
        training = Watch("steps", STEPS, folder)
        recipe = replace(recipe, epochs=-(-STEPS // per_epoch))
        train(model, parts, recipe, folder / "run", progress=lambda done, total, loss: training(done))
        evaluating = Watch("evaluations", EVALUATIONS, folder)
        settings = replace(known_settings("mnist-5k"), **FEW)
        surrogate = build("MLP-surrogate", seed=0)
        kept = folder / "run" / "evaluation.partial.jsonl"
        for number in range(1, EVALUATIONS + 1):
            found = evaluate(model, parts.test[:IMAGES], settings=settings, surrogate=surrogate, checkpoint=kept)
            write_evaluation(found, folder / "run" / "evaluation.json")
            kept.unlink()
            evaluating(number)
    write("long_run", "the same process earlier", {"steps": training.samples, "evaluations": evaluating.samples})


if __name__ == "__main__":
    main()
