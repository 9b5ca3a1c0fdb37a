"""Evaluation of a network in one call: clean, attacked with and without access to it, and corrupted."""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from noiseprop.attacks.validation import check_module
from noiseprop.corruptions import CHUNK, SEVERITIES, corrupt, corruption_seed, skip
from noiseprop.data import Dataset, batches
from noiseprop.distributed import get_world
from noiseprop.errors import InputError
from noiseprop.evaluation.attack_suite import bind_attack, craft_images
from noiseprop.evaluation.checkpoint import EvaluationIdentity, PartialEvaluation, model_digest
from noiseprop.evaluation.results import Evaluation, Finding, Measurement, Scalar
from noiseprop.evaluation.sanity_checks import CHECKS, CheckSubject
from noiseprop.evaluation.scoring import (
    Chunk,
    Outcomes,
    derive_noise_key,
    evaluation_mode,
    has_inference_noise,
    iterate_chunks,
    iterate_dataset,
    model_device,
    score_states,
)
from noiseprop.evaluation.serialization import head_fields
from noiseprop.evaluation.settings import (
    ATTACKS,
    CORRUPTIONS,
    TRANSFERRED_ATTACKS,
    TRANSFERS,
    Settings,
    choose_settings,
)
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise

EvaluationProgress = Callable[[int, int, str], None]


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    settings: Settings | None = None,
    surrogate: nn.Module | None = None,
    about: Mapping[str, Scalar] | None = None,
    checkpoint: Path | None = None,
    progress: EvaluationProgress | None = None,
) -> Evaluation:
    """Evaluate a network on a test split, clean, under attack and corrupted.

    Clean and corrupted figures are over all images, attacks over the first `settings.attack_images`, which
    `noiseprop.data.split` has put in random order. A network with noise at inference is scored with its noise off, in
    one fresh draw, and by the vote over `settings.vote_draws`. White-box attacks take the noise into account: with
    noise off, the network that is scored is the one that was attacked; otherwise each gradient is the mean over
    `settings.attack_draws` draws, and scoring draws noise that the attack has not seen. Transfers are crafted once, on
    the surrogate. The noise restarts from a stated key for each measurement and belongs to an image by its position, so
    equal calls give equal evaluations on the same machine and number of threads.

    In a `torch.distributed` process group, every process calls it. The processes share the images of each measurement,
    in pieces that do not depend on the number of processes, and all return the whole evaluation. With the same number
    of threads in each process, it equals the evaluation of a single process bit for bit, and attacks find the same
    images. Only the first process writes to `checkpoint`, which all must be able to read.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes); modes and noise state are restored.
        dataset: the test split.
        settings: what to measure and how; default those of the data set's name.
        surrogate: deterministic network on which the transfer attacks are crafted.
        about: description of the run to record (model's name, training seed, protocol, ...).
        checkpoint: file for the steps finished so far. A call that finds there the steps of an interrupted call with
            the same networks, images and settings does not measure them again. Delete it once the result is saved.
        progress: called before each step with the number of finished steps, of all steps, and the next one's name.

    Returns:
        Outcomes by image for every condition and state, and the findings of the sanity checks.

    Raises:
        InputError: no settings are known for the data set; transfers need a surrogate, or the surrogate is random; the
            model does not take the images or returns NaN or wrong-shaped logits.
        RunError: `checkpoint` cannot be written; or one process of several has another network, other images, settings,
            threads or libraries than the first, or ends.
    """
    own, image = bool(dataset.path), tuple(dataset.images.shape[1:])
    settings = settings or choose_settings(dataset.name, image, own=own)
    _check_surrogate(surrogate, settings)
    if len(dataset) == 0:
        raise InputError(f"{dataset.name}: the test split contains no images; load the data set again.")
    processes = get_world()
    report_progress = progress if progress and processes.is_first else (lambda done, total, name: None)
    with processes.report_lost_process(), evaluation_mode(model):
        _check_model_output(model, dataset)
        suite = _EvaluationSuite(model, surrogate, dataset, settings)
        empty = Evaluation(
            about=dict(about or {}),
            dataset=dataset.name,
            noisy=has_inference_noise(model),
            images=len(dataset),
            digest=images_digest(dataset),
            settings=settings,
            versions=_collect_versions(model),
            measurements=(),
        )
        identity = None
        if checkpoint or processes.size > 1:
            identity = EvaluationIdentity(
                **head_fields(empty), model=model_digest(model), surrogate=model_digest(surrogate)
            )
        stored = PartialEvaluation(checkpoint, identity, writes=processes.is_first)
        if processes.size > 1:
            processes.check_same({**msgspec.to_builtins(identity), "measured so far": stored.finished_steps})
        measurements: list[Measurement] = []
        findings: list[Finding] = []
        steps, checks = list(suite.list_steps()), suite.list_checks()
        total = len(steps) + len(checks)
        for done, (name, measure) in enumerate(steps):
            report_progress(done, total, name)
            measurements += stored.load_or_measure(name, measure)
        for done, (name, check) in enumerate(checks, len(steps)):
            report_progress(done, total, name)
            findings.append(stored.load_or_check(name, check))
        report_progress(total, total, "done")
        return replace(empty, measurements=tuple(measurements), findings=tuple(findings))


@dataclass(frozen=True)
class _EvaluationSuite:
    """Steps of one evaluation; each returns its measurements."""

    model: nn.Module
    surrogate: nn.Module | None
    dataset: Dataset
    settings: Settings

    def list_steps(self) -> Iterator[tuple[str, Callable[[], list[Measurement]]]]:
        """Yield the name of each step with the function that measures it."""
        for condition in self.settings.conditions:
            if condition in CORRUPTIONS:
                for severity in SEVERITIES:
                    yield f"{condition} {severity}", partial(self.measure_corruption, condition, severity)
            elif condition in ATTACKS:
                yield f"{condition}, noise off", partial(self.measure_attack_without_noise, condition)
                if has_inference_noise(self.model):
                    for draws in self.settings.attack_draws:
                        yield f"{condition}, EOT-{draws}", partial(self.measure_attack, condition, draws)
            elif condition in TRANSFERS:
                yield condition, partial(self.measure_transfer, condition)
            else:
                yield condition, self.measure_clean

    def list_checks(self) -> list[tuple[str, Callable[[], Finding]]]:
        """Return the sanity checks by name, bound to their images."""
        x, y = attack_images(self.dataset, self.settings.trust_images, model_device(self.model))
        subject = CheckSubject(self.model, x, y, self.settings, self.surrogate)
        return [(check.__name__.replace("_", " "), partial(check, subject)) for check in CHECKS]

    def measure_clean(self) -> list[Measurement]:
        """Score the clean images."""
        return self._to_measurements("clean", self._score_images(self._iterate_images(), len(self.dataset), "clean"))

    def measure_corruption(self, kind: str, severity: int) -> list[Measurement]:
        """Score the corrupted images of one severity."""
        generator = torch.Generator().manual_seed(corruption_seed(self.dataset.name, kind, severity))
        how: dict[str, Any] = {"severity": severity, "params": self.settings.corruption_params, "generator": generator}

        def iterate_corrupted() -> Iterator[Chunk]:
            done = 0
            for where, x, y in self._iterate_images():
                skip((where.start - done, *x.shape[1:]), kind, **how)  # images that other processes corrupt
                done = where.stop
                yield where, corrupt(x, kind, **how), y

        outcomes = self._score_images(iterate_corrupted(), len(self.dataset), kind, severity)
        return self._to_measurements(kind, outcomes, severity=severity)

    def measure_attack_without_noise(self, condition: str) -> list[Measurement]:
        """Attack and score the network with its noise off."""
        x, y = self._load_attack_images()
        attack, rows = bind_attack(condition, self.settings), self.settings.batch_size
        with sampling(self.model, "off"):
            x_adv = craft_images(attack, self.model, x, y, draws=1, rows=rows)
            outcomes = self._score_images(iterate_chunks(x_adv, y), len(y), condition, "off")
        return self._to_measurements(condition, {"off": outcomes["off"]})

    def measure_attack(self, condition: str, draws: int) -> list[Measurement]:
        """Attack the noisy network with `draws` draws per gradient, and score it."""
        x, y = self._load_attack_images()
        if draws > 1:
            x, y = x[: self.settings.eot_images], y[: self.settings.eot_images]
        reset_noise(self.model, derive_noise_key(self.settings.seed, condition, draws, "attack"))
        attack = bind_attack(condition, self.settings)
        x_adv = craft_images(attack, self.model, x, y, draws=draws, rows=self.settings.batch_size)
        outcomes = self._score_images(iterate_chunks(x_adv, y), len(y), condition, draws)
        del outcomes["off"]
        return self._to_measurements(condition, outcomes, attack_draws=draws)

    def measure_transfer(self, condition: str) -> list[Measurement]:
        """Attack the surrogate, and score the model in each of its states."""
        assert self.surrogate is not None
        x, y = self._load_attack_images()
        with evaluation_mode(self.surrogate):
            attack = bind_attack(TRANSFERRED_ATTACKS[condition], self.settings)
            x_adv = craft_images(attack, self.surrogate, x, y, draws=1, rows=self.settings.batch_size)
        return self._to_measurements(condition, self._score_images(iterate_chunks(x_adv, y), len(y), condition))

    def _score_images(self, images: Iterator[Chunk], count: int, *name: str | int) -> Outcomes:
        reset_noise(self.model, derive_noise_key(self.settings.seed, *name, "score"))
        s = self.settings
        return score_states(self.model, images, count, draws=s.vote_draws, rows=s.batch_size, votes=s.vote_images)

    def _iterate_images(self) -> Iterator[Chunk]:
        return iterate_dataset(self.dataset, model_device(self.model))

    def _load_attack_images(self) -> tuple[Tensor, Tensor]:
        return attack_images(self.dataset, self.settings.attack_images, model_device(self.model))

    @staticmethod
    def _to_measurements(
        condition: str, outcomes: Outcomes, *, attack_draws: int = 0, severity: int = 0
    ) -> list[Measurement]:
        return [Measurement(condition, state, attack_draws, severity, correct) for state, correct in outcomes.items()]


def attack_images(dataset: Dataset, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first `count` images of a test split, at most all: x (n, C, H, W) in [0, 1] and labels (n,)."""
    subset = dataset[: min(count, len(dataset))]
    x, y = next(batches(subset, len(subset), generator=None))
    return x.to(device), y.to(device)


def _check_surrogate(surrogate: nn.Module | None, settings: Settings) -> None:
    transfers = [condition for condition in settings.conditions if condition in TRANSFERS]
    if transfers and surrogate is None:
        raise InputError(f"evaluate: {', '.join(transfers)} need a surrogate; pass surrogate= or leave them out.")
    if surrogate is None:
        return
    check_module(surrogate)
    if has_inference_noise(surrogate):
        raise InputError("evaluate: the surrogate has noise at inference; craft transfer attacks on a plain network.")


@torch.no_grad()
def _check_model_output(model: nn.Module, dataset: Dataset) -> None:
    x, y = attack_images(dataset, 2, model_device(model))
    shape = tuple(x.shape[1:])
    with sampling(model, "off"):
        try:
            logits = model(x)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"evaluate: the model does not take images of {dataset.name} {shape} ({error}); "
                "check that model and data set belong together."
            ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(y), len(dataset.classes)):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"evaluate: the model returns {got} for {len(y)} images, expected logits "
            f"({len(y)}, {len(dataset.classes)}) for the classes of {dataset.name}; check that they belong together."
        )


def images_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of images and labels, by which an evaluation identifies its images."""
    digest = hashlib.sha256(str(tuple(dataset.images.shape)).encode())
    for start in range(0, len(dataset), CHUNK):
        digest.update(dataset.images[start : start + CHUNK].cpu().numpy().tobytes())
    digest.update(dataset.labels.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _collect_versions(model: nn.Module) -> dict[str, Scalar]:
    libraries = {name: version(name) for name in ("noiseprop", "torch", "numba", "numpy", "scipy")}
    machine: dict[str, Scalar] = {"machine": platform.machine(), "system": platform.system()}
    return {
        "python": platform.python_version(),
        **libraries,
        **machine,
        "threads": torch.get_num_threads(),
        "device": str(model_device(model)),
    }
