"""Run folders with made-up figures, and the reports of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from noiseprop.data import load, split
from noiseprop.evaluation.results import Evaluation, Finding, Measurement
from noiseprop.evaluation.serialization import write_evaluation
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, SETTINGS
from noiseprop.models.registry import RegisteredModelConfig, build
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.report.network_views import view_networks
from noiseprop.report.page import render_report
from noiseprop.report.run_groups import group_runs, read_run
from noiseprop.training import TABLE_1, Epoch, SigmaStatistics, save_model
from noiseprop.training.run_config import RunSettings, describe_data
from noiseprop.training.run_folder import append_epoch, open_run

IMAGES = 60


@cache
def digits():
    return split(load("mnist-5k"))


@cache
def data_of_digits():
    return describe_data(digits())


def evaluation(name: str, seed: int, *, findings: tuple[Finding, ...] = ()) -> Evaluation:
    """Made-up outcomes for every condition but transfers."""
    rng = np.random.default_rng(seed + len(name))
    noisy = name not in ("MLP", "CNN")

    def outcomes(share: float):
        return rng.random(IMAGES) < share

    measurements: list[Measurement] = []
    for state in ("off", "one", "vote") if noisy else ("off",):
        measurements.append(Measurement("clean", state, 0, 0, outcomes(0.95)))
        draws = (0,) if state == "off" else (1, 5)
        measurements += [Measurement(a, state, k, 0, outcomes(0.4)) for a in ATTACKS for k in draws]
        measurements += [Measurement(c, state, 0, s, outcomes(0.9 - 0.1 * s)) for c in CORRUPTIONS for s in range(1, 6)]
    settings = replace(
        SETTINGS["mnist-5k"],
        conditions=("clean", *ATTACKS, *CORRUPTIONS),
        attack_images=IMAGES,
        attack_draws=(1, 5),
        vote_draws=8,
    )
    about = {"model": name, "seed": seed, "epochs": 3}
    return Evaluation(
        about, "mnist-5k", noisy, IMAGES, "d" * 64, settings, {"torch": "2"}, tuple(measurements), findings
    )


def make_run(
    folder: Path,
    name: str = "MLPN",
    seed: int = 0,
    *,
    epochs: int = 3,
    judged: Evaluation | str | None = "made up",
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """A run as `train` and `evaluate` leave it, but of an untrained network with made-up figures."""
    model = build(name, seed=seed, classes=10)
    made = RunSettings(
        model=RegisteredModelConfig(name, seed=seed, classes=10),
        data=data_of_digits(),
        recipe=replace(TABLE_1["mnist-5k"], epochs=epochs),
        seed=seed,
    )
    settings = msgspec.to_builtins(made)
    if change:
        change(settings)
    open_run(folder, msgspec.convert(settings, RunSettings), resume=False)
    rng = torch.Generator().manual_seed(seed)
    for layer in noise_layers(model).values():
        layer.sigma.data = torch.rand(layer.sigma.shape, generator=rng)
    for epoch in range(1, epochs + 1):
        sigma = {path: SigmaStatistics(1 / epoch, 0.1, 0.0, 2.0) for path in noise_layers(model)}
        append_epoch(folder, Epoch(epoch, 1 / epoch, 0.9, 1.5 / epoch + seed, 1 - 0.3 / epoch, sigma, 1.0))
    save_model(model, folder / "model.safetensors", epoch=epochs)
    if judged == "made up":
        judged = evaluation(name, seed)
    if isinstance(judged, Evaluation):
        write_evaluation(judged, folder / "evaluation.json")
    return folder


def page(*folders: Path, images: int = 0) -> str:
    """The report of some run folders."""
    groups = group_runs([read_run(folder) for folder in folders])
    return render_report(groups, view_networks(groups, data_dir=None, images=images))


DOUBT = Finding("single step", "failed", {"one_step": 0.1}, "A single step is stronger than many.")
