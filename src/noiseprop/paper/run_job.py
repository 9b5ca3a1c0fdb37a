"""Execution of one job: train and evaluate a network in its own folder, or resume where it stopped."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import torch
from torch import nn

from noiseprop.data import Dataset, digest
from noiseprop.environment import choose_device
from noiseprop.errors import RunError
from noiseprop.evaluation.bfloat16 import Bfloat16
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.scoring import derive_noise_key, evaluation_mode
from noiseprop.evaluation.serialization import read_evaluation, write_evaluation
from noiseprop.files.records import read_record, write_record
from noiseprop.models.registry import RegisteredModelConfig
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.job import Job, describe_test_images, load_dataset, load_parts
from noiseprop.paper.released_code import (
    add_released_attacks,
    build_row,
    list_replaced_conditions,
    make_released_attacks,
    model_options,
)
from noiseprop.paper.specs import FIGURE_3, PROTOCOLS, choose_recipe, stops_early
from noiseprop.runs.surrogates import load_surrogate
from noiseprop.training import Epoch, Precision, loss_and_accuracy, read_metrics, train
from noiseprop.training.checkpoint import MODEL, load_model
from noiseprop.training.resume import continue_settings
from noiseprop.training.run_folder import lock_run, read_config, suggest_retraining

EVALUATION = "evaluation.json"
TEST_ACCURACY = "test_accuracy.json"
_PARTIAL = "evaluation.partial.jsonl"

ReportProgress = Callable[[int, int, str], None]
"""Called with the finished steps of a part of a run, their number, and the name of the current step."""


@dataclass(frozen=True)
class FinishedRun:
    """One finished run."""

    job: Job
    epochs: list[Epoch]
    test_accuracy: list[float]
    evaluation: Evaluation


class TestAccuracies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracies on the test images by epoch, in a file of the run."""

    by_epoch: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1)]]


class _StopEarly(Exception):  # noqa: N818 - no error
    """Ends a training whose last epoch is saved."""


def run_job(job: Job, report_progress: ReportProgress) -> None:
    """Train and evaluate a network, resume that, or do nothing if both are finished.

    Raises:
        RunError: the folder holds a run with other settings, is damaged, or is in use by another process.
    """
    model, epochs = train_network(job, report_progress)
    with lock_run(job.folder, resume=True):
        if _find_evaluation(job, epochs) is None:
            write_evaluation(_evaluate_network(job, model, epochs, report_progress), job.folder / EVALUATION)
            (job.folder / _PARTIAL).unlink(missing_ok=True)


def is_finished(job: Job) -> bool:
    """Return whether `run_job` has nothing to do.

    Raises:
        RunError: the folder is damaged.
    """
    return _find_evaluation(job, len(read_metrics(job.folder))) is not None


def read_finished(job: Job) -> FinishedRun:
    """Read a run that `run_job` has finished.

    Raises:
        RunError: the run is not finished, or the folder is damaged.
    """
    epochs = read_metrics(job.folder)
    evaluation = _find_evaluation(job, len(epochs))
    if evaluation is None:
        raise RunError(f"{job.folder}: the run is not finished; run the same `noiseprop reproduce` again")
    measured = _read_test_accuracies(job)
    if _measures_test_accuracy(job) and (lost := [epoch.epoch for epoch in epochs if epoch.epoch not in measured]):
        raise RunError(f"{job.folder / TEST_ACCURACY} lacks epoch {lost[0]}; {suggest_retraining(job.folder)}")
    return FinishedRun(job, epochs, [measured[epoch.epoch] for epoch in epochs if epoch.epoch in measured], evaluation)


def load_trained(job: Job) -> nn.Module:
    """Return the network of a job whose training is finished.

    Raises:
        RunError: it is not finished, had other settings or images, or the folder is damaged.
    """
    recipe = job.recipe
    if len(read_metrics(job.folder)) < recipe.epochs:
        raise RunError(f"{job.folder}: {job.name} is not trained yet; redo its table first, with the same options")
    written = read_config(job.folder).settings
    data = msgspec.structs.replace(written.data, digest=digest(load_parts(job)))
    continue_settings(job.folder, written, msgspec.structs.replace(written, recipe=recipe, data=data))
    model = build_network(job)
    load_model(model, job.folder / MODEL)
    return model.eval()


def train_network(job: Job, report_progress: ReportProgress) -> tuple[nn.Module, int]:
    """Train or resume the network of a job; return it and the number of its epochs."""
    parts, model = load_parts(job), build_network(job)
    config = RegisteredModelConfig(
        **model_options(job.row, job.protocol, seed=job.seed, classes=len(parts.train.classes))
    )
    with suppress(_StopEarly):
        train(
            model,
            parts,
            job.recipe,
            job.folder,
            seed=job.seed,
            model_config=config,
            settings={"departures": sorted(job.protocol.departures)},
            resume=True,
            progress=_TrainingMonitor(job, model, parts.test, report_progress),
        )
    return model, load_model(model, job.folder / MODEL)


def build_network(job: Job) -> nn.Module:
    """Return the untrained network of a job on its device."""
    classes = len(load_dataset(job.data, job.data_dir).classes)
    decay = job.recipe.weight_decay
    model = build_row(job.row, job.protocol, seed=job.seed, weight_decay=decay, classes=classes)
    return model.to(choose_device(job.device))


class _TrainingMonitor:
    """Progress of a training that measures test accuracy by epoch, where a figure needs it, and stops early.

    The measurement leaves no trace in the training: mode and noise state of the model are restored.
    """

    def __init__(self, job: Job, model: nn.Module, test: Dataset, report_progress: ReportProgress) -> None:
        self.job, self.model, self.test, self.report_progress = job, model, test, report_progress
        self.measures = _measures_test_accuracy(job)
        self.measured = _read_test_accuracies(job)

    def __call__(self, done: int, total: int, loss: float) -> None:
        """Receive the progress of `train`: finished steps, all steps, loss."""
        per_epoch = total // self.job.recipe.epochs
        saved = (done - 1) // per_epoch  # epochs on disk
        if saved and stops_early(self.job.protocol, self.measured.get(saved, 0.0)):
            raise _StopEarly
        self.report_progress(done, total, f"training, loss {loss:.4f}")
        if self.measures and done % per_epoch == 0:
            self.measured[saved + 1] = self._measure_accuracy(saved + 1)
            write_record(
                self.job.folder / TEST_ACCURACY, TestAccuracies({str(epoch): v for epoch, v in self.measured.items()})
            )

    def _measure_accuracy(self, epoch: int) -> float:
        with evaluation_mode(self.model):
            reset_noise(self.model, derive_noise_key(self.job.seed, "test accuracy", epoch))
            return loss_and_accuracy(self.model, self.test, precision=self.job.precision)[1]


def _measures_test_accuracy(job: Job) -> bool:
    return job.row in FIGURE_3 or "early-stopping" in job.protocol


def _read_test_accuracies(job: Job) -> dict[int, float]:
    """Return test accuracies by epoch; empty if there is no file."""
    path = job.folder / TEST_ACCURACY
    try:
        return {int(epoch): value for epoch, value in read_record(path, TestAccuracies).by_epoch.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); {suggest_retraining(job.folder)}") from error


def _evaluate_network(job: Job, model: nn.Module, epochs: int, report_progress: ReportProgress) -> Evaluation:
    test, surrogate = load_parts(job).test[: job.test_images], _load_job_surrogate(job, report_progress)
    for network in (model, surrogate):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: halves a noisy CNN's time
    if job.judged_in == "bf16":
        model, surrogate = Bfloat16(model), Bfloat16(surrogate)
    attacks, settings = make_released_attacks(job.protocol, job.settings), job.settings
    if attacks:
        others = tuple(c for c in settings.conditions if c not in list_replaced_conditions(attacks))
        settings = replace(settings, conditions=others)
    evaluation = evaluate(
        model,
        test,
        settings=settings,
        surrogate=surrogate,
        about=_describe_job(job, epochs),
        checkpoint=job.folder / _PARTIAL,
        progress=report_progress,
    )
    if attacks:
        report_progress(0, 1, "attacks of the released code")
        evaluation = add_released_attacks(evaluation, model, surrogate, test, job.settings, attacks)
    return evaluation


def _load_job_surrogate(job: Job, report_progress: ReportProgress) -> nn.Module:
    """Return the network for transfer attacks: one for all runs under a root with the same recipe and epochs.

    The one for MNIST is trained in float32 whatever the precision of the runs, so that all share it.
    """
    precision: Precision = "fp32" if job.data.startswith("mnist") else job.precision
    return load_surrogate(
        load_dataset(job.data, job.data_dir),
        recipe=choose_recipe(
            PROTOCOLS["paper"], job.data, epochs=job.epochs, precision=precision, name=job.recipe_name
        ),
        cache=job.root / "surrogates",
        device=choose_device(job.device),
        progress=lambda done, total, loss: report_progress(done, total, f"training the surrogate, loss {loss:.4f}"),
    )


def _describe_job(job: Job, epochs: int) -> dict[str, str | int]:
    return {
        "model": job.row.model,
        "activation": job.row.activation,
        "seed": job.seed,
        "protocol": job.protocol.name,
        "departures": " ".join(sorted(job.protocol.departures)),
        "recipe": job.recipe_name,
        "epochs": epochs,
        "surrogate_epochs": job.epochs,
        "precision": job.precision,
        **({} if job.judged_in == "fp32" else {"judged_in": job.judged_in}),
    }


def _find_evaluation(job: Job, epochs: int) -> Evaluation | None:
    """Return the evaluation of the run if it is intact and has the requested settings and images."""
    if not epochs or not (job.folder / EVALUATION).exists():
        return None
    try:
        found = read_evaluation(job.folder / EVALUATION)
    except RunError:
        return None  # damaged: it is made again
    same = found.settings == job.settings and dict(found.about) == _describe_job(job, epochs)
    return found if same and (found.images, found.digest) == describe_test_images(job) else None
