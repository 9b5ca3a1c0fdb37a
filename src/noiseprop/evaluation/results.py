"""What one evaluation found: settings, seeds, versions and per-sample outcomes, enough to remake every table."""

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
    """Which images one network got right under one condition.

    Attributes:
        condition: one of CONDITIONS.
        state: "off" (no noise), "one" (a single fresh draw) or "vote" (most frequent class over the vote's draws).
        attack_draws: noise draws per gradient (EOT) of a white-box attack on the noisy network; 0 where it has none.
        severity: 1 to 5 of a corruption, else 0.
        correct: (n,) bool, by image, in the order of the test split.
    """

    condition: str
    state: State
    attack_draws: int
    severity: int
    correct: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """The share of images that are right."""
        return float(self.correct.mean())

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the accuracy: images are the sample, the trained network is fixed."""
        return wilson(int(self.correct.sum()), self.correct.size)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells this measurement from the others of one evaluation."""
        return (self.condition, self.state, self.attack_draws, self.severity)


@dataclass(frozen=True)
class Finding:
    """What one check of `trust` saw: its name, how it ended, the numbers, and one plain sentence."""

    name: str
    outcome: Outcome
    numbers: Mapping[str, float]
    sentence: str


@dataclass(frozen=True)
class Evaluation:
    """One network judged on one test split.

    Attributes:
        about: what the caller says of the run (model, protocol, training seed, ...).
        dataset: name of the data set.
        noisy: whether the network is random at inference; if not, there is only the state "off".
        images: number of images of the test split that were scored clean and corrupted.
        digest: SHA-256 of the test split's images and labels, so that only figures of the same images are compared.
        settings: everything that decides the figures.
        versions: of Python and the libraries, threads and device.
        measurements: outcomes, one per condition, state, attack draws and severity.
        findings: what makes a figure doubtful, or that nothing does.
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
        """The measurements of a condition: one, or five in the order of severity for a corruption.

        Args:
            condition: one of CONDITIONS.
            state: "off", "one" or "vote"; default "one" for a noisy network, "off" for any other.
            attack_draws: of the attack; default the most draws that there are.

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
                f"there is {sorted({m.key[:3] for m in self.measurements})}."
            )
        return tuple(found)

    def accuracy(self, condition: str, *, state: State | None = None, attack_draws: int | None = None) -> float:
        """Accuracy under a condition, averaged over the severities of a corruption; arguments as for `select`."""
        found = self.select(condition, state=state, attack_draws=attack_draws)
        return sum(m.accuracy for m in found) / len(found)
