"""Paired test between the evaluations of two networks on the same images."""

from noiseprop.errors import InputError
from noiseprop.evaluation.results import Evaluation, Measurement, State
from noiseprop.evaluation.settings import CORRUPTIONS
from noiseprop.evaluation.statistics import Paired, paired


def compare(
    a: Evaluation,
    b: Evaluation,
    condition: str,
    *,
    severity: int = 0,
    state: State | None = None,
    attack_draws: int | None = None,
) -> Paired:
    """Test whether two networks differ under one condition, image by image (McNemar; see `statistics.paired`).

    Args:
        a: evaluation of the first network.
        b: evaluation of the second.
        condition: one of CONDITIONS.
        severity: 1 to 5, required for a corruption: over all five the same images would count five times.
        state: "off", "one" or "vote" of both; default of each network "one" if it is noisy, otherwise "off".
        attack_draws: noise draws of the attack on both; default the largest number measured for each.

    Returns:
        Accuracies, difference a - b with its 95 % interval, and the exact p-value. They hold for these two trained
        networks; `statistics.mean_std` shows how much training seeds vary.

    Raises:
        InputError: the evaluations differ in images, their number, or attacks, or this figure was not measured.
    """
    if (a.dataset, a.digest) != (b.dataset, b.digest):
        raise InputError(
            f"compare: the evaluations are of different test images ({a.dataset} {a.digest[:8]} and "
            f"{b.dataset} {b.digest[:8]}); evaluate both runs on one split."
        )
    attacks = [
        (s.fgsm_eps, s.pgd_eps, s.pgd_step, s.pgd_steps, s.lbfgs_step, s.lbfgs_steps, s.corruption_params)
        for s in (a.settings, b.settings)
    ]
    if attacks[0] != attacks[1]:
        raise InputError("compare: the evaluations used attacks or corruptions of different strength; use one setting.")
    if (severity > 0) != (condition in CORRUPTIONS):
        raise InputError(f"compare: {condition} with severity {severity}; give 1 to 5 for corruptions, 0 otherwise.")
    first, second = (_select_severity(e, condition, severity, state, attack_draws) for e in (a, b))
    return paired(first.correct, second.correct)


def _select_severity(
    evaluation: Evaluation, condition: str, severity: int, state: State | None, attack_draws: int | None
) -> Measurement:
    for m in evaluation.select(condition, state=state, attack_draws=attack_draws):
        if m.severity == severity:
            return m
    raise InputError(f"compare: {condition} was not measured at severity {severity}; evaluate the run again.")
