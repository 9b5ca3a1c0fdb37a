"""One call that judges a network: clean, attacked with and without sight of it, and corrupted."""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.corruptions import CHUNK, SEVERITIES, corrupt, corruption_seed, skip
from noiseprop.data import Dataset, batches
from noiseprop.distributed import world
from noiseprop.errors import InputError
from noiseprop.evaluation.attack_suite import attack_of, craft
from noiseprop.evaluation.checkpoint import Partial, fingerprint
from noiseprop.evaluation.results import Evaluation, Finding, Measurement, Scalar
from noiseprop.evaluation.sanity_checks import CHECKS, Subject
from noiseprop.evaluation.scoring import (
    Chunk,
    Outcomes,
    chunks,
    chunks_of,
    device_of,
    judging,
    noise_is_on,
    noise_key,
    score,
)
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS, Settings, settings_of
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise

Progress = Callable[[int, int, str], None]


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    settings: Settings | None = None,
    surrogate: nn.Module | None = None,
    about: Mapping[str, Scalar] | None = None,
    kept: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a network on a test split, clean, under attack and corrupted.

    Clean and corrupted figures are over all images, attacks over the first `settings.attack_images`, which
    `noiseprop.data.split` has put in random order. A network with noise at inference is scored with its noise off, in
    one fresh draw, and by the vote over `settings.vote_draws`. Its white-box attacks see the noise: with noise off the
    network that is scored is the one that was attacked; else the gradient is averaged over each of
    `settings.attack_draws` draws, and what is scored draws noise that the attack has not seen. Transfers are crafted
    once, on the surrogate. The noise starts again from a stated key for each measurement and belongs to an image by its
    number, so equal calls give equal evaluations on the same machine and number of threads.

    Called in every process of a `torch.distributed` process group, it deals out the images of each measurement, in
    pieces that do not depend on the number of processes, and returns the whole evaluation in all of them. With the same
    number of threads in each it is the one of a single process, image for image and bit for bit, and attacks find the
    same images, too: nothing that they draw depends on who computes it. Only the first process writes to `kept`, which
    all have to see.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes); left in its mode, with its noise where it was.
        dataset: the test split.
        settings: what to measure and how; default those of the data set's name.
        surrogate: deterministic network on which the transfer attacks are crafted.
        about: what to record of the run (model's name, training seed, protocol, ...).
        kept: a file for what is measured so far. A call that finds there what an earlier one, killed or stopped, had
            measured of the same networks, images and settings does not measure it again. Whoever has the result
            deletes it.
        progress: called before each step with the steps done, their number and the next one's name.

    Returns:
        Outcomes by image for every condition and state, and the findings of `trust`.

    Raises:
        InputError: no settings are known for the data set; transfers are asked for without a surrogate, or the
            surrogate is random; the model does not take the images or returns NaN or wrong-shaped logits.
        RunError: `kept` cannot be written; or of several processes one has another network, other images, settings,
            threads or libraries than the first, or ends.
    """
    own, image = bool(dataset.path), tuple(dataset.images.shape[1:])
    settings = settings or settings_of(dataset.name, image, own=own)
    _check_surrogate(surrogate, settings)
    if len(dataset) == 0:
        raise InputError(f"{dataset.name}: the test split holds no images; load the data set again.")
    here = world()
    tell = progress if progress and here.first else (lambda done, total, name: None)
    with here.watched(), judging(model):
        _check_fits(model, dataset)
        suite = _Suite(model, surrogate, dataset, settings)
        whole = Evaluation(
            about=dict(about or {}),
            dataset=dataset.name,
            noisy=noise_is_on(model),
            images=len(dataset),
            digest=images_digest(dataset),
            settings=settings,
            versions=_versions(model),
            measurements=(),
        )
        what = _what(whole, model, surrogate) if kept or here.size > 1 else {}
        so_far = Partial(kept, what, writes=here.first)
        here.check_same({**what, "measured so far": so_far.steps})
        measurements: list[Measurement] = []
        findings: list[Finding] = []
        steps, checks = list(suite.steps()), suite.checks()
        total = len(steps) + len(checks)
        for done, (name, measure) in enumerate(steps):
            tell(done, total, name)
            measurements += so_far.measured(name, measure)
        for done, (name, check) in enumerate(checks, len(steps)):
            tell(done, total, name)
            findings.append(so_far.checked(name, check))
        tell(total, total, "done")
        return replace(whole, measurements=tuple(measurements), findings=tuple(findings))


def _what(whole: Evaluation, model: nn.Module, surrogate: nn.Module | None) -> dict[str, Any]:
    """All that decides an evaluation's figures, JSON-able."""
    told = {name: value for name, value in asdict(whole).items() if name not in ("measurements", "findings")}
    return told | {"model": fingerprint(model), "surrogate": fingerprint(surrogate)}


@dataclass(frozen=True)
class _Suite:
    """The steps of one evaluation; each returns its measurements."""

    model: nn.Module
    surrogate: nn.Module | None
    dataset: Dataset
    settings: Settings

    def steps(self) -> Iterator[tuple[str, Callable[[], list[Measurement]]]]:
        for condition in self.settings.conditions:
            if condition in CORRUPTIONS:
                for severity in SEVERITIES:
                    yield f"{condition} {severity}", lambda c=condition, s=severity: self.corrupted(c, s)
            elif condition in ATTACKS:
                yield f"{condition}, noise off", lambda c=condition: self.attacked_off(c)
                if noise_is_on(self.model):
                    for draws in self.settings.attack_draws:
                        yield f"{condition}, EOT-{draws}", lambda c=condition, k=draws: self.attacked(c, k)
            elif condition in TRANSFERS:
                yield condition, lambda c=condition: self.transferred(c)
            else:
                yield condition, self.clean

    def checks(self) -> list[tuple[str, Callable[[], Finding]]]:
        """The checks of `trust`, on their subset."""
        x, y = attack_images(self.dataset, self.settings.trust_images, device_of(self.model))
        subject = Subject(self.model, x, y, self.settings, self.surrogate)
        return [(check.__name__.replace("_", " "), partial(check, subject)) for check in CHECKS]

    def clean(self) -> list[Measurement]:
        return self._record("clean", self._score(self._chunks(), len(self.dataset), "clean"))

    def corrupted(self, kind: str, severity: int) -> list[Measurement]:
        generator = torch.Generator().manual_seed(corruption_seed(self.dataset.name, kind, severity))
        how: dict[str, Any] = {"severity": severity, "params": self.settings.corruption_params, "generator": generator}

        def images() -> Iterator[Chunk]:
            done = 0
            for where, x, y in self._chunks():
                skip((where.start - done, *x.shape[1:]), kind, **how)  # what other processes corrupt
                done = where.stop
                yield where, corrupt(x, kind, **how), y

        return self._record(kind, self._score(images(), len(self.dataset), kind, severity), severity=severity)

    def attacked_off(self, condition: str) -> list[Measurement]:
        """The white-box attack on the network without its noise, which is what is scored."""
        x, y = self._attack_images()
        with sampling(self.model, "off"):
            x_adv = craft(attack_of(condition, self.settings), self.model, x, y, draws=1, rows=self.settings.batch_size)
            outcomes = self._score(chunks(x_adv, y), len(y), condition, "off")
        return self._record(condition, {"off": outcomes["off"]})

    def attacked(self, condition: str, draws: int) -> list[Measurement]:
        """The white-box attack on the noisy network, `draws` draws to a gradient."""
        x, y = self._attack_images()
        if draws > 1:
            x, y = x[: self.settings.eot_images], y[: self.settings.eot_images]
        reset_noise(self.model, noise_key(self.settings.seed, condition, draws, "attack"))
        attack = attack_of(condition, self.settings)
        x_adv = craft(attack, self.model, x, y, draws=draws, rows=self.settings.batch_size)
        outcomes = self._score(chunks(x_adv, y), len(y), condition, draws)
        del outcomes["off"]
        return self._record(condition, outcomes, attack_draws=draws)

    def transferred(self, condition: str) -> list[Measurement]:
        """The attack on the surrogate, scored on the model in each of its states."""
        assert self.surrogate is not None
        x, y = self._attack_images()
        with judging(self.surrogate):
            attack = attack_of(condition.removesuffix("-transfer"), self.settings)
            x_adv = craft(attack, self.surrogate, x, y, draws=1, rows=self.settings.batch_size)
        return self._record(condition, self._score(chunks(x_adv, y), len(y), condition))

    def _score(self, images: Iterator[Chunk], count: int, *name: str | int) -> Outcomes:
        reset_noise(self.model, noise_key(self.settings.seed, *name, "score"))
        s = self.settings
        return score(self.model, images, count, draws=s.vote_draws, rows=s.batch_size, votes=s.vote_images)

    def _chunks(self) -> Iterator[Chunk]:
        return chunks_of(self.dataset, device_of(self.model))

    def _attack_images(self) -> tuple[Tensor, Tensor]:
        return attack_images(self.dataset, self.settings.attack_images, device_of(self.model))

    @staticmethod
    def _record(condition: str, outcomes: Outcomes, *, attack_draws: int = 0, severity: int = 0) -> list[Measurement]:
        return [Measurement(condition, state, attack_draws, severity, correct) for state, correct in outcomes.items()]


def attack_images(dataset: Dataset, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first `count` images of a test split, or all if it has fewer: x (n, C, H, W) in [0, 1] and labels (n,)."""
    subset = dataset[: min(count, len(dataset))]
    x, y = next(batches(subset, len(subset), generator=None))
    return x.to(device), y.to(device)


def _check_surrogate(surrogate: nn.Module | None, settings: Settings) -> None:
    asked = [condition for condition in settings.conditions if condition in TRANSFERS]
    if asked and surrogate is None:
        raise InputError(f"evaluate: {', '.join(asked)} need a surrogate; pass surrogate= or leave them out.")
    if surrogate is not None and noise_is_on(surrogate):
        raise InputError("evaluate: the surrogate has noise at inference; craft transfer attacks on a plain network.")


@torch.no_grad()
def _check_fits(model: nn.Module, dataset: Dataset) -> None:
    x, y = attack_images(dataset, 2, device_of(model))
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
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"evaluate: the model returns {came} for {len(y)} images, expected logits "
            f"({len(y)}, {len(dataset.classes)}) for the classes of {dataset.name}; check that they belong together."
        )


def images_digest(dataset: Dataset) -> str:
    """SHA-256 of images and labels, which an evaluation names its images by."""
    digest = hashlib.sha256(str(tuple(dataset.images.shape)).encode())
    for start in range(0, len(dataset), CHUNK):
        digest.update(dataset.images[start : start + CHUNK].cpu().numpy().tobytes())
    digest.update(dataset.labels.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _versions(model: nn.Module) -> dict[str, Scalar]:
    libraries = {name: version(name) for name in ("noiseprop", "torch", "numba", "numpy", "scipy")}
    machine: dict[str, Scalar] = {"machine": platform.machine(), "system": platform.system()}
    return {
        "python": platform.python_version(),
        **libraries,
        **machine,
        "threads": torch.get_num_threads(),
        "device": str(device_of(model)),
    }
