"""Demo: the paper's three MLPs on 5,000 real digits, trained, evaluated and compared in a minute."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
from torch import nn

from noiseprop.data import Dataset, load, split
from noiseprop.environment import Environment, describe_environment
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.settings import known_settings
from noiseprop.files.untrusted import read_json
from noiseprop.runs.trained_model import train_run
from noiseprop.training import TABLE_1

MODELS = ("MLP", "MLP+", "MLPN")
_FORMAT = "noiseprop demo"
_DATA = "mnist-5k"

DemoProgress = Callable[[int, int, str], None]


class DemoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the demo, by default those of Tables 1 and 2; eps in input units, each step of PGD is eps / 5."""

    epochs: int = 30
    seeds: tuple[int, ...] = (0, 1, 2)
    fgsm_eps: float = 0.1
    pgd_eps: float = 25 / 255
    pgd_steps: int = 10
    eot_draws: int = 20
    curve_eps: tuple[float, ...] = tuple(n / 255 for n in (0, 5, 10, 15, 20, 25, 30, 40))


class Accuracies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracies on the test images; None where the network has no noise to average over."""

    clean: float
    fgsm: float
    pgd: float
    fgsm_eot: float | None = None
    pgd_eot: float | None = None


class DemoRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of one network and training seed.

    Attributes:
        on: accuracies with the noise as trained.
        off: accuracies with the noise off; None for a network without noise.
        curve: accuracy under PGD, with EOT where there is noise, at each of `curve_eps`.
        validation: validation accuracy by epoch.
        sigma: mean |sigma| by layer and epoch.
    """

    seed: int
    on: Accuracies
    off: Accuracies | None
    curve: tuple[float, ...]
    validation: tuple[float, ...]
    sigma: dict[str, tuple[float, ...]]


class DemoData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Data set of the demo, with its numbers of images."""

    name: str
    source: str
    train: int
    test: int


class DemoRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format", tag=_FORMAT):
    """Record of a demo: settings, data, machine, and the runs by network."""

    settings: DemoSettings
    data: DemoData
    made_with: Environment
    seconds: float
    models: dict[str, tuple[DemoRun, ...]]


def is_demo(path: Path) -> bool:
    """Return whether a file holds the record of a demo, of any version."""
    try:
        document = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and str(document.get("format")).startswith(_FORMAT)


def run_demo(settings: DemoSettings | None = None, *, progress: DemoProgress | None = None) -> DemoRecord:
    """Train MLP, MLP+ and MLPN (ReLU) by Table 1, and evaluate each under FGSM and PGD.

    Args:
        settings: the paper's if None.
        progress: called with finished steps, all steps, and the next one's name.
    """
    settings, start = settings or DemoSettings(), time.perf_counter()
    report_progress = progress or (lambda done, total, name: None)
    dataset = load(_DATA)
    parts, recipe = split(dataset), replace(TABLE_1[_DATA], epochs=settings.epochs)
    runs: dict[str, list[DemoRun]] = {name: [] for name in MODELS}
    jobs = [(seed, name) for seed in settings.seeds for name in MODELS]
    for number, (seed, name) in enumerate(jobs):
        report_progress(2 * number, 2 * len(jobs), f"training {name}, seed {seed}")
        model, epochs = train_run(name, dataset, recipe, None, seed=seed)
        report_progress(2 * number + 1, 2 * len(jobs), f"attacking {name}, seed {seed}")
        on, off, curve = _evaluate_network(model, parts.test, settings, seed)
        validation = tuple(epoch.validation_accuracy for epoch in epochs)
        sigma = {
            layer.removesuffix(".noise"): tuple(epoch.sigma[layer].mean for epoch in epochs)
            for layer in epochs[0].sigma
        }
        runs[name].append(DemoRun(seed, on, off, curve, validation, sigma))
    report_progress(2 * len(jobs), 2 * len(jobs), "done")
    data = DemoData(dataset.name, dataset.source, len(parts.train), len(parts.test))
    seconds = round(time.perf_counter() - start, 1)
    return DemoRecord(settings, data, describe_environment(), seconds, {name: tuple(runs[name]) for name in MODELS})


def _evaluate_network(
    model: nn.Module, test: Dataset, settings: DemoSettings, seed: int
) -> tuple[Accuracies, Accuracies | None, tuple[float, ...]]:
    """Return the accuracies with noise on and off, and those by eps."""
    chosen = replace(
        known_settings(_DATA),
        conditions=("clean", "fgsm", "pgd"),
        fgsm_eps=settings.fgsm_eps,
        pgd_eps=settings.pgd_eps,
        pgd_step=settings.pgd_eps / 5,
        pgd_steps=settings.pgd_steps,
        attack_draws=(1, settings.eot_draws),
        vote_draws=1,
        trust_images=1,  # the sanity checks are no part of the demo
        seed=seed,
    )
    found = evaluate(model, test, settings=chosen)
    on = off = Accuracies(*(found.accuracy(condition, state="off") for condition in chosen.conditions))
    if found.noisy:
        names = [("clean", 0), ("fgsm", 1), ("pgd", 1), ("fgsm", settings.eot_draws), ("pgd", settings.eot_draws)]
        on = Accuracies(*(found.accuracy(condition, attack_draws=draws) for condition, draws in names))
    known = {0.0: found.accuracy("clean"), settings.pgd_eps: found.accuracy("pgd")}
    only_pgd = replace(chosen, conditions=("pgd",), attack_draws=(settings.eot_draws,))
    for eps in set(settings.curve_eps) - set(known):
        known[eps] = evaluate(model, test, settings=replace(only_pgd, pgd_eps=eps, pgd_step=eps / 5)).accuracy("pgd")
    return on, off if found.noisy else None, tuple(known[eps] for eps in settings.curve_eps)
