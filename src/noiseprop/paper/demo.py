"""The main job in a minute: the paper's three MLPs on 5,000 real digits, trained, attacked and compared."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from noiseprop.attacks import fgsm, pgd
from noiseprop.data import Dataset, batches, load, split
from noiseprop.environment import describe_environment
from noiseprop.evaluation.scoring import derive_noise_key, evaluation_mode, expected_accuracy, has_inference_noise
from noiseprop.files.untrusted import read_json
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise
from noiseprop.runs.trained_model import train_run
from noiseprop.training import TABLE_1, Epoch

FORMAT = "noiseprop demo, version 1"
MODELS = ("MLP", "MLP+", "MLPN")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What the demo does; the defaults are those of Tables 1 and 2. eps are in input units, [0, 1]."""

    epochs: int = 30
    seeds: tuple[int, ...] = (0, 1, 2)
    fgsm_eps: float = 0.1
    pgd_eps: float = 25 / 255
    pgd_steps: int = 10  # each of size eps / 5
    eot_draws: int = 20
    score_draws: int = 20
    curve_eps: tuple[float, ...] = tuple(n / 255 for n in (0, 5, 10, 15, 20, 25, 30, 40))


def is_demo(path: Path) -> bool:
    """Whether a file holds the record of a demo, of whatever version."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and str(record.get("format")).startswith("noiseprop demo,")


def run_demo(settings: Settings | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train MLP, MLP+ and MLPN (ReLU) with Table 1's settings and attack each with FGSM and PGD.

    Every figure is an accuracy on the test images. A noisy network's is that of one pass, averaged over
    `score_draws` passes whose noise the attack has not seen.

    Args:
        settings: what to do; the paper's if None.
        progress: called with steps done, all steps, and the next one's name.

    Returns:
        A JSON-able record of settings, machine, and per model and seed: "on" (noise as trained) and, for noisy models,
        "off", each with the accuracies "clean", "fgsm", "pgd" (one draw per gradient) and "on" also "fgsm-eot",
        "pgd-eot"; "curve", PGD's accuracy (EOT where noisy) at each of `curve_eps`; "validation", accuracy by epoch;
        "sigma", the mean |sigma| by layer and epoch.
    """
    chosen = settings or Settings()
    start = time.perf_counter()
    dataset = load("mnist-5k")
    test = split(dataset).test
    recipe = replace(TABLE_1["mnist-5k"], epochs=chosen.epochs)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MODELS}
    jobs = [(seed, name) for seed in chosen.seeds for name in MODELS]
    tell = progress or (lambda done, total, name: None)
    for number, (seed, name) in enumerate(jobs):
        tell(2 * number, 2 * len(jobs), f"training {name}, seed {seed}")
        model, epochs = train_run(name, dataset, recipe, None, seed=seed)
        tell(2 * number + 1, 2 * len(jobs), f"attacking {name}, seed {seed}")
        found[name].append({"seed": seed, **_history(epochs), **_judge(model, test, chosen, seed)})
    tell(2 * len(jobs), 2 * len(jobs), "done")
    data = {"name": dataset.name, "source": dataset.source, "train": len(split(dataset).train), "test": len(test)}
    seconds = round(time.perf_counter() - start, 1)
    return {
        "format": FORMAT,
        "settings": asdict(chosen),
        "data": data,
        "made_with": msgspec.structs.asdict(describe_environment()) | {"seconds": seconds},
        "models": found,
    }


def _history(epochs: list[Epoch]) -> dict[str, Any]:
    layers = epochs[0].sigma
    return {
        "validation": [epoch.validation_accuracy for epoch in epochs],
        "sigma": {layer.removesuffix(".noise"): [epoch.sigma[layer].mean for epoch in epochs] for layer in layers},
    }


def _judge(model: nn.Module, test: Dataset, settings: Settings, seed: int) -> dict[str, Any]:
    """Attack a trained network with its noise on and, where it has any, off."""
    x, y = next(batches(test, len(test), generator=None))
    with evaluation_mode(model):
        reset_noise(model, derive_noise_key(seed, "demo"))
        judge = _Judge(model, x, y, settings)
        noisy = has_inference_noise(model)
        on = {"clean": judge.score(x), "fgsm": judge.fgsm(1), "pgd": judge.pgd(settings.pgd_eps, 1)}
        if noisy:
            draws = settings.eot_draws
            on |= {"fgsm-eot": judge.fgsm(draws), "pgd-eot": judge.pgd(settings.pgd_eps, draws)}
        known = {0.0: on["clean"], settings.pgd_eps: on["pgd-eot" if noisy else "pgd"]}
        draws = settings.eot_draws if noisy else 1
        curve = [known[eps] if eps in known else judge.pgd(eps, draws) for eps in settings.curve_eps]
        result: dict[str, Any] = {"on": on, "curve": curve}
        if noisy:
            with sampling(model, "off"):
                off = _Judge(model, x, y, replace(settings, score_draws=1))
                result["off"] = {"clean": off.score(x), "fgsm": off.fgsm(1), "pgd": off.pgd(settings.pgd_eps, 1)}
    return result


@dataclass(frozen=True)
class _Judge:
    """Attacks on one network, scored with the noise it has at the time."""

    model: nn.Module
    x: Tensor
    y: Tensor
    settings: Settings

    def fgsm(self, draws: int) -> float:
        return self.score(fgsm(self.model, self.x, self.y, eps=self.settings.fgsm_eps, draws=draws))

    def pgd(self, eps: float, draws: int) -> float:
        steps = self.settings.pgd_steps
        return self.score(pgd(self.model, self.x, self.y, eps=eps, step=eps / 5, steps=steps, draws=draws))

    def score(self, x: Tensor) -> float:
        """Accuracy of one pass, averaged over fresh draws; `expected_accuracy` chooses its own sampling."""
        draws = self.settings.score_draws
        if draws == 1 or not has_inference_noise(self.model):
            with torch.no_grad():
                return int((self.model(x).argmax(-1) == self.y).sum()) / len(self.y)
        return expected_accuracy(self.model, x, self.y, draws=draws, rows=draws * len(self.y))
