"""One run of the reproduction: a network trained and judged in a folder of its own, gone on with where it stopped."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from msgspec import structs
from torch import nn

from noiseprop.data import Dataset, Split, digest, load, split
from noiseprop.environment import choose_device
from noiseprop.errors import RunError
from noiseprop.evaluation.bfloat16 import Bfloat16
from noiseprop.evaluation.evaluate import evaluate, images_digest
from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.scoring import derive_noise_key, evaluation_mode
from noiseprop.evaluation.serialization import read_evaluation, write_evaluation
from noiseprop.evaluation.settings import Settings
from noiseprop.files.atomic import write_json
from noiseprop.files.checksum import verify_checksum
from noiseprop.files.untrusted import read_json
from noiseprop.models.registry import RegisteredModelConfig
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.protocol import FIGURE_3, PROTOCOLS, Protocol, RecipeName, Row, recipe, stops
from noiseprop.paper.released import build_row, options
from noiseprop.paper.released_attacks import released_attacks, replaced, with_attacks
from noiseprop.runs.surrogates import load_surrogate
from noiseprop.training import Epoch, Precision, Recipe, loss_and_accuracy, read_metrics, train
from noiseprop.training.checkpoint import MODEL, load_model
from noiseprop.training.resume import continue_settings
from noiseprop.training.run_folder import lock_run, read_config, suggest_retraining

EVALUATION = "evaluation.json"
TEST_ACCURACY = "test_accuracy.json"
_PARTIAL = "evaluation.partial.jsonl"

Tell = Callable[[int, int, str], None]
"""Called with the steps done of a part of a run, their number, and what is being done."""


@dataclass(frozen=True)
class Job:
    """What decides one run."""

    row: Row
    seed: int
    protocol: Protocol
    data: str
    data_dir: Path | None
    epochs: int
    precision: Precision
    settings: Settings
    root: Path
    recipe: RecipeName = "table1"
    test_images: int | None = None  # to judge it on, the first ones; all where None
    judged_in: Precision = "fp32"
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Where the run is kept; one of few epochs is another run than one of more."""
        group = f"{self.protocol.name}-{self.data}" + (
            "" if self.recipe == "table1" else f"-{self.recipe}-{self.epochs}"
        )
        return self.root / group / f"{self.row.slug}-seed{self.seed}"

    @property
    def name(self) -> str:
        """What the run is called where progress is shown."""
        return f"{self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class Run:
    """One finished run."""

    job: Job
    epochs: list[Epoch]
    test_accuracy: list[float]
    evaluation: Evaluation


class _StopEarly(Exception):  # noqa: N818 - no error
    """Ends a training whose last epoch is on the disk."""


def do(job: Job, tell: Tell) -> None:
    """Train and judge a network, or go on with it, or do nothing where both are done.

    Raises:
        RunError: the folder holds a run of other settings, is damaged, or another process is at work there.
    """
    model, epochs = _train(job, tell)
    with lock_run(job.folder, resume=True):
        if _evaluation(job, epochs) is None:
            write_evaluation(_judge(job, model, epochs, tell), job.folder / EVALUATION)
            (job.folder / _PARTIAL).unlink(missing_ok=True)


def parts_of(job: Job) -> Split:
    """The images that a job's network is trained and judged on."""
    return _parts(job.data, job.data_dir)


def judged_on(job: Job) -> tuple[int, str]:
    """How many test images a job's network is judged on, and their digest."""
    return _judged_on(job.data, job.data_dir, job.test_images)


def is_finished(job: Job) -> bool:
    """Whether `do` has nothing to do.

    Raises:
        RunError: the folder is damaged.
    """
    return _evaluation(job, len(read_metrics(job.folder))) is not None


def finished(job: Job) -> Run:
    """Read a run that `do` has finished.

    Raises:
        RunError: it has not, or the folder is damaged.
    """
    epochs = read_metrics(job.folder)
    evaluation = _evaluation(job, len(epochs))
    if evaluation is None:
        raise RunError(f"{job.folder}: the run is not finished; run the same `noiseprop reproduce` again")
    measured = _test_accuracies(job)
    if _measures(job) and (lost := [epoch.epoch for epoch in epochs if epoch.epoch not in measured]):
        raise RunError(f"{job.folder / TEST_ACCURACY} lacks epoch {lost[0]}; {suggest_retraining(job.folder)}")
    return Run(job, epochs, [measured[epoch.epoch] for epoch in epochs if epoch.epoch in measured], evaluation)


def trained(job: Job) -> nn.Module:
    """The network of a job whose training is finished.

    Raises:
        RunError: it is not, or was trained otherwise or on other images, or the folder is damaged.
    """
    chosen = recipe_of(job)
    if len(read_metrics(job.folder)) < chosen.epochs:
        raise RunError(f"{job.folder}: {job.name} is not trained yet; redo its table first, with the same options")
    there = read_config(job.folder).settings
    data = structs.replace(there.data, digest=digest(parts_of(job)))
    continue_settings(job.folder, there, structs.replace(there, recipe=chosen, data=data))
    model = _built(job)
    load_model(model, job.folder / MODEL)
    return model.eval()


def recipe_of(job: Job) -> Recipe:
    """How a job's network is trained."""
    return recipe(job.protocol, job.data, epochs=job.epochs, precision=job.precision, name=job.recipe)


def _train(job: Job, tell: Tell) -> tuple[nn.Module, int]:
    """The trained network and how many epochs it took."""
    parts, chosen, model = parts_of(job), recipe_of(job), _built(job)
    config = RegisteredModelConfig(**options(job.row, job.protocol, seed=job.seed, classes=len(parts.train.classes)))
    settings = {"departures": sorted(job.protocol.departures)}
    watch = _Watch(job, model, parts.test, tell)
    with suppress(_StopEarly):
        train(
            model,
            parts,
            chosen,
            job.folder,
            seed=job.seed,
            model_config=config,
            settings=settings,
            resume=True,
            progress=watch,
        )
    return model, load_model(model, job.folder / MODEL)


def _built(job: Job) -> nn.Module:
    """A job's network as it begins, where it is to compute."""
    classes, decay = len(_dataset(job.data, job.data_dir).classes), recipe_of(job).weight_decay
    model = build_row(job.row, job.protocol, seed=job.seed, weight_decay=decay, classes=classes)
    return model.to(choose_device(job.device))


class _Watch:
    """Follows a training: shows it, measures test accuracy by epoch where it is asked for, and stops it early.

    The measurement leaves no trace in the training: the model's mode and the place of its noise are put back.
    """

    def __init__(self, job: Job, model: nn.Module, test: Dataset, tell: Tell) -> None:
        self.job, self.model, self.test, self.tell = job, model, test, tell
        self.measures = _measures(job)
        self.measured = _test_accuracies(job)

    def __call__(self, done: int, total: int, loss: float) -> None:
        """`train`'s progress: steps done, all steps, loss."""
        per_epoch = total // recipe_of(self.job).epochs
        before = (done - 1) // per_epoch  # epochs on the disk
        if before and stops(self.job.protocol, self.measured.get(before, 0.0)):
            raise _StopEarly
        self.tell(done, total, f"training, loss {loss:.4f}")
        if self.measures and done % per_epoch == 0:
            self.measured[before + 1] = self._accuracy(before + 1)
            write_json(self.job.folder / TEST_ACCURACY, {str(epoch): value for epoch, value in self.measured.items()})

    def _accuracy(self, epoch: int) -> float:
        with evaluation_mode(self.model):
            reset_noise(self.model, derive_noise_key(self.job.seed, "test accuracy", epoch))
            return loss_and_accuracy(self.model, self.test, precision=self.job.precision)[1]


def _measures(job: Job) -> bool:
    """Whether accuracy on the test images is measured after each epoch."""
    return job.row in FIGURE_3 or "early-stopping" in job.protocol


def _test_accuracies(job: Job) -> dict[int, float]:
    """Test accuracies by epoch; none where none are kept yet."""
    path = job.folder / TEST_ACCURACY
    try:
        kept = verify_checksum(read_json(path))
        return {int(epoch): float(value) for epoch, value in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); {suggest_retraining(job.folder)}") from error


def _judge(job: Job, model: nn.Module, epochs: int, tell: Tell) -> Evaluation:
    """Evaluate a trained network on the test images."""
    test = parts_of(job).test[: job.test_images]
    net = _surrogate(job, tell)
    for network in (model, net):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: halves a noisy CNN's time
    if job.judged_in == "bf16":
        model, net = Bfloat16(model), Bfloat16(net)
    attacks, settings = released_attacks(job.protocol, job.settings), job.settings
    if attacks:
        others = tuple(c for c in settings.conditions if c not in replaced(attacks))
        settings = replace(settings, conditions=others)
    evaluation = evaluate(
        model,
        test,
        settings=settings,
        surrogate=net,
        about=_about(job, epochs),
        checkpoint=job.folder / _PARTIAL,
        progress=tell,
    )
    if attacks:
        tell(0, 1, "attacks of the released code")
        evaluation = with_attacks(evaluation, model, net, test, job.settings, attacks)
    return evaluation


def _surrogate(job: Job, tell: Tell) -> nn.Module:
    """The network of the transfer attacks: one for all runs under a root, of the same recipe and as many epochs.

    MNIST's is trained at float32 whatever the runs' precision, so that all of them share it.
    """
    precision: Precision = "fp32" if job.data.startswith("mnist") else job.precision
    dataset = _dataset(job.data, job.data_dir)
    chosen = recipe(PROTOCOLS["paper"], job.data, epochs=job.epochs, precision=precision, name=job.recipe)
    return load_surrogate(
        dataset,
        recipe=chosen,
        cache=job.root / "surrogates",
        device=choose_device(job.device),
        progress=lambda done, total, loss: tell(done, total, f"training the surrogate, loss {loss:.4f}"),
    )


def _about(job: Job, epochs: int) -> dict[str, str | int]:
    return {
        "model": job.row.model,
        "activation": job.row.activation,
        "seed": job.seed,
        "protocol": job.protocol.name,
        "departures": " ".join(sorted(job.protocol.departures)),
        "recipe": job.recipe,
        "epochs": epochs,
        "surrogate_epochs": job.epochs,
        "precision": job.precision,
        **({} if job.judged_in == "fp32" else {"judged_in": job.judged_in}),
    }


def _evaluation(job: Job, epochs: int) -> Evaluation | None:
    """The run's evaluation, if there is a usable one of the network as trained, with settings and images as asked."""
    if not epochs or not (job.folder / EVALUATION).exists():
        return None
    try:
        kept = read_evaluation(job.folder / EVALUATION)
    except RunError:
        return None  # damaged: it is made again
    same = kept.settings == job.settings and dict(kept.about) == _about(job, epochs)
    return kept if same and (kept.images, kept.digest) == judged_on(job) else None


@cache
def _dataset(name: str, data_dir: Path | None) -> Dataset:
    return load(name, data_dir)


@cache
def _parts(name: str, data_dir: Path | None) -> Split:
    return split(_dataset(name, data_dir))


@cache
def _judged_on(name: str, data_dir: Path | None, images: int | None) -> tuple[int, str]:
    test = _parts(name, data_dir).test[:images]
    return len(test), images_digest(test)
