"""Accuracy against eps for each attack, measured for a report and saved beside the run for the next one."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import RunError
from noiseprop.evaluation.attack_suite import SuiteAttack, bind_attack, craft_images
from noiseprop.evaluation.checkpoint import model_digest
from noiseprop.evaluation.sanity_checks import CheckSubject
from noiseprop.evaluation.scoring import derive_noise_key, evaluation_mode, has_inference_noise
from noiseprop.evaluation.settings import ATTACKS, TRANSFERS, Settings
from noiseprop.files.atomic import check_writable, write_json
from noiseprop.files.checksum import verify_checksum
from noiseprop.files.untrusted import read_json
from noiseprop.noise.stream import reset_noise

CURVE = "curve.json"
MULTIPLES = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the evaluation's eps of PGD
_FORMAT = "noiseprop curve, version 1"

ReportStep = Callable[[str], None]


@dataclass(frozen=True)
class Curve:
    """Accuracies under attack.

    Attributes:
        eps: radii of the L-infinity ball in input units, rising from 0.
        accuracy: by attack, for each eps; the expected accuracy of one draw for a noisy network.
        images: number of attacked images, the first of the test split.
        draws: noise draws per gradient (EOT); 1 without noise.
        score_draws: fresh draws over which each accuracy is the mean; 1 without noise.
    """

    eps: tuple[float, ...]
    accuracy: Mapping[str, tuple[float, ...]]
    images: int
    draws: int
    score_draws: int


def measure_eps_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    settings: Settings,
    surrogate: nn.Module | None = None,
    kept: Path | None = None,
    report_step: ReportStep | None = None,
) -> Curve:
    """Attack some images at several eps, or read the curve that an earlier call has saved for this network and images.

    PGD keeps its number of steps and the ratio of step to eps. L-BFGS has no eps: its images are crafted once and then
    projected onto each ball. Gradients are averaged over the largest number of draws of the evaluation's attacks, and
    scores use fresh noise.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, classes); it is not changed.
        x: images (n, C, H, W) in [0, 1].
        y: true labels (n,).
        settings: settings of the run's evaluation.
        surrogate: network on which transfer attacks are crafted, or None for no transfer attacks.
        kept: file of the curve; one of another network, other images or settings is replaced.
        report_step: called with the name of each step before it.

    Raises:
        InputError: the model does not accept the images.
        RunError: `kept` cannot be written.
    """
    what = _digest_curve_inputs(model, x, y, settings, surrogate)
    if kept is not None and (known := _read_curve(kept, what)) is not None:
        return known
    noisy, eps = has_inference_noise(model), tuple(multiple * settings.pgd_eps for multiple in (0.0, *MULTIPLES))
    with evaluation_mode(model):
        subject = CheckSubject(model, x, y, settings, surrogate)
        names = (*ATTACKS, *(TRANSFERS if surrogate is not None else ()))
        accuracy = _measure_accuracies(subject, names, eps, report_step or (lambda step: None))
    curve = Curve(eps, accuracy, len(y), subject.draws, settings.vote_draws if noisy else 1)
    if kept is not None:
        write_json(kept, {"format": _FORMAT, "what": what, **asdict(curve)})
    return curve


def _measure_accuracies(
    subject: CheckSubject, names: Sequence[str], eps: Sequence[float], report_step: ReportStep
) -> dict[str, tuple[float, ...]]:
    seed = subject.settings.seed
    reset_noise(subject.model, derive_noise_key(seed, "curve", "clean"))
    clean = subject.accuracy(subject.x, single=False)
    found: dict[str, tuple[float, ...]] = {}
    for name in names:
        report_step(name)
        made_at = _make_crafter(subject, name)
        row = [clean]
        for radius in eps[1:]:
            x_adv = made_at(radius)
            reset_noise(subject.model, derive_noise_key(seed, "curve", name, str(radius), "score"))
            row.append(subject.accuracy(x_adv, single=False))
        found[name] = tuple(row)
    return found


def _make_crafter(subject: CheckSubject, name: str) -> Callable[[float], Tensor]:
    """Return a function from eps to the adversarial images of one attack."""
    base, s, x = name.removesuffix("-transfer"), subject.settings, subject.x
    victim = subject.surrogate if name in TRANSFERS else subject.model
    assert victim is not None
    draws = 1 if name in TRANSFERS else subject.draws

    def craft_with(attack: SuiteAttack, radius: str) -> Tensor:
        with evaluation_mode(victim):
            reset_noise(victim, derive_noise_key(s.seed, "curve", name, radius, "attack"))
            return craft_images(attack, victim, x, subject.y, draws=draws, rows=s.batch_size)

    if base == "lbfgs":
        far = craft_with(bind_attack("lbfgs", s), "any")
        return lambda eps: torch.clamp(far, x - eps, x + eps).clamp_(0, 1)
    return lambda eps: craft_with(bind_attack(base, set_eps(s, eps)), str(eps))


def set_eps(settings: Settings, eps: float) -> Settings:
    """Return the settings with another radius for the attacks; the step of PGD keeps its ratio to it."""
    return replace(settings, fgsm_eps=eps, pgd_eps=eps, pgd_step=settings.pgd_step * eps / settings.pgd_eps)


def _digest_curve_inputs(
    model: nn.Module, x: Tensor, y: Tensor, settings: Settings, surrogate: nn.Module | None
) -> str:
    """Return the SHA-256 of all inputs of a curve."""
    digest = hashlib.sha256(json.dumps([asdict(settings), MULTIPLES, tuple(x.shape)], sort_keys=True).encode())
    digest.update(f"{model_digest(model)} {model_digest(surrogate)} {has_inference_noise(model)}".encode())
    digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    digest.update(y.detach().cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _read_curve(path: Path, what: str) -> Curve | None:
    """Return the curve in a file, or None if it is missing, damaged or has other inputs."""
    try:
        document = verify_checksum(read_json(path))
        if document["format"] != _FORMAT or document["what"] != what:
            return None
        curve = Curve(
            tuple(_check_number(value) for value in document["eps"]),
            {str(name): tuple(_check_number(v, most=1) for v in row) for name, row in document["accuracy"].items()},
            *(_check_count(document[name]) for name in ("images", "draws", "score_draws")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    complete = all(len(row) == len(curve.eps) == 1 + len(MULTIPLES) for row in curve.accuracy.values())
    return curve if complete and set(curve.accuracy) <= {*ATTACKS, *TRANSFERS} else None


def _check_number(value: Any, *, most: float = 100) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (math.isfinite(value) and 0 <= value <= most)
    ):
        raise ValueError(value)
    return float(value)


def _check_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9:
        raise ValueError(value)
    return value


def check_curve_path(path: Path) -> Path | None:
    """Return the path of a curve, or None if the run folder is not writable."""
    try:
        check_writable(path)
    except RunError:
        return None
    return path
