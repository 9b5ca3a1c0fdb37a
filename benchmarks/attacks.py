"""Time PGD-10 beside torchattacks and foolbox in one run: `python benchmarks/attacks.py [--out attacks.json]`.

Claims: on the paper's CNN ours is at least as fast as the faster of the two for equal adversarial images; and for the
robust accuracy of a weak deterministic model, where broken images may leave the batch, at least twice as fast.

In every round each contender runs once, in turn (the order is drawn anew), after one warm-up round that is dropped; the
speed-up is the median over rounds of the faster rival's time divided by ours in the same round.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.attacks import pgd
from noiseprop.data import batches, load, split
from noiseprop.nets import cnn, mlp

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox 3.3.4 imports scipy.ndimage.filters
    import foolbox
    import torchattacks

EPS, STEP, STEPS = 25 / 255, 5 / 255, 10  # Table 2, MNIST

Run = Callable[[], Tensor]


def trained(model: nn.Module, train: tuple[Tensor, Tensor], epochs: int) -> nn.Module:
    """A model trained on clean digits only, and so weak under attack."""
    x, y = train
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(128):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def contenders(model: nn.Module, x: Tensor, y: Tensor, *, stop: bool) -> dict[str, Run]:
    """Each library's PGD-10 from the image itself, to adversarial images."""
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1))
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return {
        "noiseprop": lambda: pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS, stop_when_broken=stop),
        "torchattacks": lambda: torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(x, y),
        "foolbox": lambda: theirs.run(bounded, x, foolbox.criteria.Misclassification(y), epsilon=EPS),
    }


def compete(runs: dict[str, Run], rounds: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of every contender in every round but the first, and what each made in the last."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    made: dict[str, Tensor] = {}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            start = time.perf_counter()
            made[name] = runs[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds, made


def judge(name: str, model: nn.Module, x: Tensor, y: Tensor, *, stop: bool, rounds: int) -> dict[str, object]:
    """One comparison: times, paired speed-up, and whether the results agree."""
    seconds, made = compete(contenders(model, x, y, stop=stop), rounds)
    rivals = zip(seconds["torchattacks"], seconds["foolbox"], strict=True)
    ratios = [min(pair) / ours for pair, ours in zip(rivals, seconds["noiseprop"], strict=True)]
    with torch.no_grad():
        robust = {name: (model(x_adv).argmax(1) == y).float().mean().item() for name, x_adv in made.items()}
        clean = (model(x).argmax(1) == y).float().mean().item()
    differences = (made["noiseprop"] - made["torchattacks"]).abs()
    found: dict[str, object] = {
        "comparison": name,
        "images": len(x),
        "milliseconds": {name: summary([1e3 * t for t in times]) for name, times in seconds.items()},
        "speed-up over the faster rival": summary(ratios),
        "clean accuracy": clean,
        "robust accuracy": robust,
    }
    if not stop:
        found["share of pixels that differ from torchattacks by more than 1e-6"] = (
            (differences > 1e-6).float().mean().item()
        )
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "quartile 1": low, "quartile 3": high, "n": len(values)}


def surroundings() -> dict[str, object]:
    """Machine, versions and commit."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    names = ("torch", "torchattacks", "foolbox", "noiseprop")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "commit": commit,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    """Print one line per comparison, and write all of it as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=500, help="test digits that are attacked")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    digits = split(load("mnist-5k"))
    train = next(batches(digits.train, len(digits.train), generator=None))
    x, y = next(batches(digits.test, min(options.images, len(digits.test)), generator=None))
    conv, weak = trained(cnn(), train, 2), trained(mlp(), train, 15)
    results = [
        judge("PGD-10 on the CNN, equal output", conv, x, y, stop=False, rounds=options.rounds),
        judge("PGD-10 on the MLP, equal output", weak, x, y, stop=False, rounds=options.rounds),
        judge("robust accuracy of the CNN under PGD-10", conv, x, y, stop=True, rounds=options.rounds),
        judge("robust accuracy of the MLP under PGD-10", weak, x, y, stop=True, rounds=options.rounds),
    ]
    for result in results:
        print(json.dumps(result, indent=1))
    if options.out:
        aside = options.out.with_suffix(".tmp")
        aside.write_text(json.dumps({"surroundings": surroundings(), "results": results}, indent=1) + "\n")
        aside.replace(options.out)


if __name__ == "__main__":
    sys.exit(main())
