"""Results of an evaluation: outcomes by image, settings, seeds and versions, enough to recompute every table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from noiseprop.errors import InputError
from noiseprop.evaluation.settings import Settings
from noiseprop.evaluation.statistics import Interval, wilson

Scalar = str | int | float | bool | None
State = Literal["off", "one", "vote"]
Outcome = Literal["passed", "failed", "not applicable"]

STATES: tuple[State, ...] = ("off", "one", "vote")
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "not applicable")


@dataclass(frozen=True)
class Measurement:
    """Outcomes of one network, image by image, under one condition.

    Attributes:
        condition: one of CONDITIONS.
        state: "off" (no noise), "one" (a single fresh draw) or "vote" (most frequent class over the vote's draws).
        attack_draws: noise draws per gradient (EOT) of a white-box attack on the noisy network, otherwise 0.
        severity: 1 to 5 for a corruption, otherwise 0.
        correct: (n,) bool, by image, in the order of the test split.
    """

    condition: str
    state: State
    attack_draws: int
    severity: int
    correct: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Return the share of images that are classified correctly."""
        return float(self.correct.mean())

    @property
    def interval(self) -> Interval:
        """Return Wilson's 95 % interval of the accuracy: images are the sample, the trained network is fixed."""
        return wilson(int(self.correct.sum()), self.correct.size)

    @property
    def key(self) -> tuple[str, State, int, int]:
        """Return the fields that identify this measurement within an evaluation."""
        return (self.condition, self.state, self.attack_draws, self.severity)


@dataclass(frozen=True)
class Finding:
    """Result of one sanity check: its name, outcome, numbers, and one plain sentence."""

    name: str
    outcome: Outcome
    numbers: Mapping[str, float]
    sentence: str


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one network on one test split.

    Attributes:
        about: description of the run by the caller (model, protocol, training seed, ...).
        dataset: name of the data set.
        noisy: whether the network is random at inference; if not, "off" is its only state.
        images: number of images of the test split that were scored clean and corrupted.
        digest: SHA-256 of the test split's images and labels, so that only figures of the same images are compared.
        settings: everything that determines the figures.
        versions: Python and library versions, threads and device.
        measurements: outcomes, one per condition, state, attack draws and severity.
        findings: results of the sanity checks.
    """

    about: Mapping[str, Scalar]
    dataset: str
    noisy: bool
    images: int
    digest: str
    settings: Settings
    versions: Mapping[str, Scalar]
    measurements: tuple[Measurement, ...]
    findings: tuple[Finding, ...] = ()

    def select(
        self, condition: str, *, state: State | None = None, attack_draws: int | None = None
    ) -> tuple[Measurement, ...]:
        """Return the measurements of a condition: one, or five in the order of severity for a corruption.

        Args:
            condition: one of CONDITIONS.
            state: "off", "one" or "vote"; default "one" for a noisy network, otherwise "off".
            attack_draws: noise draws of the attack; default the largest number measured.

        Raises:
            InputError: nothing of this kind was measured.
        """
        state = state or ("one" if self.noisy else "off")
        found = [m for m in self.measurements if m.condition == condition and m.state == state]
        draws = max((m.attack_draws for m in found), default=0) if attack_draws is None else attack_draws
        found = sorted((m for m in found if m.attack_draws == draws), key=lambda m: m.severity)
        if not found:
            raise InputError(
                f"evaluation: nothing was measured for {condition}, state {state}, attack draws {draws}; "
                f"measured were {sorted({m.key[:3] for m in self.measurements})}."
            )
        return tuple(found)

    def accuracy(self, condition: str, *, state: State | None = None, attack_draws: int | None = None) -> float:
        """Return the accuracy under a condition, averaged over severities; arguments as for `select`."""
        found = self.select(condition, state=state, attack_draws=attack_draws)
        return sum(m.accuracy for m in found) / len(found)
