"""Sanity checks of every evaluation: each tests for one reason to doubt a robustness figure.

A figure of a random network is easily wrong, because the attack saw one draw of its noise, stopped early or met masked
gradients. Each check attacks a stated subset again and compares accuracies of the same images; on a network with noise
they are expected accuracies of one draw, each the mean over the vote's draws. Sources: Athalye et al. 2018, section 3;
Carlini et al. 2019, "On Evaluating Adversarial Robustness"; Tramèr et al. 2020.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noiseprop.attacks.fgsm import fgsm
from noiseprop.attacks.pgd import pgd
from noiseprop.attacks.validation import check_images
from noiseprop.distributed import get_world
from noiseprop.evaluation.attack_suite import SuiteAttack, bind_attack, craft_images
from noiseprop.evaluation.results import Finding
from noiseprop.evaluation.scoring import (
    derive_noise_key,
    evaluation_mode,
    expected_accuracy,
    has_inference_noise,
    sample_logits,
)
from noiseprop.evaluation.settings import Settings
from noiseprop.evaluation.statistics import wilson
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_of, reset_noise

TOLERANCE = 0.02  # accuracies that differ by at most this, or by one image, count as equal: five of 256 images
LARGE_EPS, LARGE_STEPS = 0.5, 20  # at eps = 0.5 every image can be turned grey, so nothing above chance can last


@dataclass(frozen=True)
class CheckSubject:
    """Subject of the checks: a network, images (N, C, H, W), labels (N,), and settings of the attacks."""

    model: nn.Module
    x: Tensor
    y: Tensor
    settings: Settings
    surrogate: nn.Module | None = None

    @property
    def draws(self) -> int:
        """Return the noise draws of the strongest attack of the evaluation; 1 for a network without noise."""
        return max(self.settings.attack_draws) if has_inference_noise(self.model) else 1

    @property
    def tolerance(self) -> float:
        """Return the largest difference of two accuracies that count as equal."""
        return max(TOLERANCE, 1 / len(self.y))

    def accuracy_under(
        self,
        attack: SuiteAttack,
        name: str,
        *,
        draws: int | None = None,
        noise: AbstractContextManager[None] | None = None,
    ) -> float:
        """Return the accuracy under a white-box attack, inside `noise` (off, frozen) or with fresh draws."""
        draws, rows, seed = draws or self.draws, self.settings.batch_size, self.settings.seed
        with noise or nullcontext():
            reset_noise(self.model, derive_noise_key(seed, "trust", name, draws, "attack"))
            x_adv = craft_images(attack, self.model, self.x, self.y, draws=1 if noise else draws, rows=rows)
            reset_noise(self.model, derive_noise_key(seed, "trust", name, draws, "score"))
            return self.accuracy(x_adv, single=noise is not None)

    @torch.no_grad()
    def accuracy(self, x_adv: Tensor, *, single: bool) -> float:
        """Return the accuracy on given images: of one plain pass (`single`), otherwise as expected of one draw."""
        rows = self.settings.batch_size
        if single or not has_inference_noise(self.model):
            processes, right = get_world(), torch.zeros((), dtype=torch.int64)
            for piece in processes.deal_pieces(len(self.y), rows):
                with noise_of(self.model, piece.start):
                    right += int((self.model(x_adv[piece].clone()).argmax(-1) == self.y[piece]).sum())
            return int(processes.sum_over_processes(right)) / len(self.y)
        return expected_accuracy(self.model, x_adv, self.y, draws=self.settings.vote_draws, rows=rows)


def check_noise(subject: CheckSubject) -> Finding:
    """Check that noise differs between equal images, passes and draws."""
    rows, noisy = subject.x[:1].repeat(8, *[1] * (subject.x.dim() - 1)), has_inference_noise(subject.model)
    reset_noise(subject.model, derive_noise_key(subject.settings.seed, "trust", "noise"))
    with torch.no_grad():
        first, second = subject.model(rows.clone()), subject.model(rows.clone())
    size = 1e-5 * max(1.0, float(first.abs().max()))
    numbers = {
        "between_rows": float((first - first[0]).abs().max()),
        "between_passes": float((first - second).abs().max()),
    }
    by_row, by_pass = (value > size for value in numbers.values())
    if not (noisy or by_row or by_pass):
        return _skip_check("noise", "The network is deterministic at inference.")
    if by_row and by_pass and noisy:
        with torch.no_grad():
            draws = sample_logits(subject.model, rows[:1], subject.y[:1], 4)[:, 0]  # (4, classes)
        numbers["between_draws"] = float((draws - draws[0]).abs().max())
        return _conclude_check(
            "noise",
            numbers["between_draws"] <= size,
            numbers,
            "The draws within one pass are equal, so EOT sees one draw.",
            "The noise is live: equal images, passes and draws all differ.",
        )
    if not (by_row or by_pass):
        says = "The noise is dead: equal images get equal logits in one batch and in two passes."
    elif not by_row:
        says = "The noise is shared across the batch: equal images in one batch get equal logits, so EOT sees one draw."
    elif not by_pass:
        says = "The noise is the same in every pass, so an attacker can know it."
    else:
        says = "The network is random without a noise layer of noiseprop: attacks saw one draw, each figure is of one."
    return Finding("noise", "failed", numbers, says)


def check_convergence(subject: CheckSubject) -> Finding:
    """Check that twice the steps, or twice the draws, lower PGD's accuracy no further."""
    s, draws = subject.settings, subject.draws
    attack = bind_attack("pgd", s)
    longer = _bind_pgd(s.pgd_eps, s.pgd_step, 2 * s.pgd_steps)
    base = subject.accuracy_under(attack, "convergence")
    numbers = {"accuracy": base, "twice_the_steps": subject.accuracy_under(longer, "convergence-steps")}
    if draws > 1 or has_inference_noise(subject.model):
        numbers["twice_the_draws"] = subject.accuracy_under(attack, "convergence-draws", draws=2 * draws)
    lower = min(numbers.values())
    figures = ", ".join(f"{value:.3f} with {name.replace('_', ' ')}" for name, value in list(numbers.items())[1:])
    sentence = f"PGD-{s.pgd_steps} (EOT-{draws}) leaves {base:.3f}, {figures}"
    return _conclude_check(
        "convergence",
        base - lower > subject.tolerance,
        {**numbers, "steps": s.pgd_steps, "draws": draws},
        f"The attack has not converged: {sentence}; the accuracy under attack is lower than stated.",
        f"The attack has converged: {sentence}.",
    )


def check_single_step(subject: CheckSubject) -> Finding:
    """Check that many steps are at least as strong as a single step of the same eps."""
    eps = subject.settings.pgd_eps
    one = subject.accuracy_under(lambda model, x, y, draws: fgsm(model, x, y, eps=eps, draws=draws), "single-step")
    many = subject.accuracy_under(bind_attack("pgd", subject.settings), "many-steps")
    sentence = (
        f"{one:.3f} is left by one step of {eps:.3f}, {many:.3f} by {subject.settings.pgd_steps} steps in that ball"
    )
    return _conclude_check(
        "single step",
        many - one > subject.tolerance,
        {"one_step": one, "many_steps": many, "eps": eps},
        f"A single step is stronger than many, a sign of masked gradients: {sentence}.",
        f"Many steps are at least as strong as one: {sentence}.",
    )


def check_transfer(subject: CheckSubject) -> Finding:
    """Check that an attack with access to the network is at least as strong as the same attack by transfer."""
    if subject.surrogate is None:
        return _skip_check("transfer", "No surrogate was given, so no attack was transferred.")
    numbers: dict[str, float] = {}
    stronger: list[str] = []
    for name in ("fgsm", "lbfgs"):
        attack, rows = bind_attack(name, subject.settings), subject.settings.batch_size
        with evaluation_mode(subject.surrogate):
            x_adv = craft_images(attack, subject.surrogate, subject.x, subject.y, draws=1, rows=rows)
        reset_noise(subject.model, derive_noise_key(subject.settings.seed, "trust", name, "transfer"))
        transferred = subject.accuracy(x_adv, single=False)
        white = subject.accuracy_under(attack, f"{name}-white")
        numbers |= {f"{name}_white_box": white, f"{name}_transfer": transferred}
        if white - transferred > subject.tolerance:
            stronger.append(name.upper() if name == "fgsm" else "L-BFGS")
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items()) + "."
    return _conclude_check(
        "transfer",
        bool(stronger),
        numbers,
        f"{' and '.join(stronger)} by transfer beat the white box; gradients may be masked, or steps short: {figures}",
        f"Transfer is no stronger than the white box: {figures}",
    )


def check_large_eps(subject: CheckSubject) -> Finding:
    """Check that PGD at eps = 0.5, steps of 2.5 eps / steps, reaches chance: the share of the most common label."""
    attack = _bind_pgd(LARGE_EPS, 2.5 * LARGE_EPS / LARGE_STEPS, LARGE_STEPS)
    accuracy, n = subject.accuracy_under(attack, "large-eps"), len(subject.y)
    chance = float(subject.y.bincount().max()) / n
    sentence = f"{accuracy:.3f} is left by PGD-{LARGE_STEPS} at eps {LARGE_EPS}, where chance is {chance:.3f}"
    return _conclude_check(
        "large eps",
        wilson(round(accuracy * n), n).low > chance,
        {"accuracy": accuracy, "chance": chance, "eps": LARGE_EPS, "steps": LARGE_STEPS},
        f"An attack without bound fails, a sign of masked gradients: {sentence}.",
        f"An attack without bound succeeds: {sentence}.",
    )


def check_frozen(subject: CheckSubject) -> Finding:
    """Check that the gain of the noise survives when the noise is frozen and known to the attack.

    The gain is accuracy under PGD with live noise minus that with noise off. Frozen, each image has one fixed draw that
    the attack knows and that scores it. If less than half of the gain survives, it came from hiding the draw rather
    than from a better network.
    """
    if not has_inference_noise(subject.model):
        return _skip_check("frozen noise", "The network has no noise at inference that could be frozen.")
    attack, key = bind_attack("pgd", subject.settings), derive_noise_key(subject.settings.seed, "trust", "frozen")
    live = subject.accuracy_under(attack, "live")
    off = subject.accuracy_under(attack, "off", noise=sampling(subject.model, "off"))
    frozen = subject.accuracy_under(attack, "frozen", noise=sampling(subject.model, "frozen", key=key))
    sentence = (
        f"under PGD {live:.3f} with live noise, {frozen:.3f} with noise frozen and known, {off:.3f} with noise off"
    )
    return _conclude_check(
        "frozen noise",
        live - off > subject.tolerance and frozen - off < (live - off) / 2,
        {"live": live, "frozen": frozen, "off": off},
        f"The noise's gain is gone once its draw is known: {sentence}.",
        f"What noise gains does not hang on an unknown draw: {sentence}."
        if live - off > subject.tolerance
        else f"Noise at inference gains nothing: {sentence}.",
    )


CHECKS: tuple[Callable[[CheckSubject], Finding], ...] = (
    check_noise,
    check_convergence,
    check_single_step,
    check_transfer,
    check_large_eps,
    check_frozen,
)


def run_sanity_checks(
    model: nn.Module, x: Tensor, y: Tensor, *, settings: Settings, surrogate: nn.Module | None = None
) -> tuple[Finding, ...]:
    """Run every check on a network.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes); modes and noise state are restored.
        x: images (N, C, H, W) in [0, 1]; a few hundred.
        y: true labels (N,).
        settings: settings of the evaluation whose figures are in question.
        surrogate: network for transfer attacks; without one that check does not apply.

    Returns:
        One finding per check, in the order of CHECKS.

    Raises:
        InputError: x has no images or leaves [0, 1], labels are out of range, or the logits are NaN or of another
            shape.
    """
    x, y = check_images(x, y, model)
    with evaluation_mode(model):
        return tuple(check(CheckSubject(model, x, y, settings, surrogate)) for check in CHECKS)


def _bind_pgd(eps: float, step: float, steps: int) -> SuiteAttack:
    return lambda model, x, y, draws: pgd(model, x, y, eps=eps, step=step, steps=steps, draws=draws)


def _skip_check(name: str, sentence: str) -> Finding:
    return Finding(name, "not applicable", {}, sentence)


def _conclude_check(name: str, doubtful: bool, numbers: Mapping[str, float], doubt: str, trusted: str) -> Finding:
    floats = {key: float(value) for key, value in numbers.items()}
    return Finding(name, "failed" if doubtful else "passed", floats, doubt if doubtful else trusted)
