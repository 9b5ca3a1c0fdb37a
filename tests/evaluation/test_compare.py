from dataclasses import replace

import numpy as np
import pytest

from noiseprop.errors import InputError
from noiseprop.evaluation.compare import compare
from noiseprop.evaluation.results import Evaluation, Measurement
from noiseprop.evaluation.settings import Settings
from noiseprop.evaluation.statistics import paired


def evaluation(seed, noisy):
    rng = np.random.default_rng(seed)

    def outcomes(n):
        return rng.random(n) < 0.8

    states = ("off", "one", "vote") if noisy else ("off",)
    measurements = [Measurement("clean", state, 0, 0, outcomes(200)) for state in states]
    measurements += [Measurement("contrast", state, 0, s, outcomes(200)) for state in states for s in range(1, 6)]
    measurements += [Measurement("pgd", "off", 0, 0, outcomes(50))]
    if noisy:
        measurements += [Measurement("pgd", s, k, 0, outcomes(50)) for s in ("one", "vote") for k in (1, 20)]
    return Evaluation({}, "mnist", noisy, 200, "d" * 64, Settings(attack_images=50), {}, tuple(measurements))


def outcomes_of(e, *key):
    (found,) = [m for m in e.measurements if m.key == key]
    return found.correct


def test_each_network_is_taken_as_it_is_used():
    plain, noisy = evaluation(0, noisy=False), evaluation(1, noisy=True)
    assert compare(noisy, plain, "pgd") == paired(
        outcomes_of(noisy, "pgd", "one", 20, 0), outcomes_of(plain, "pgd", "off", 0, 0)
    )
    assert compare(noisy, noisy, "clean", state="vote").p_value == 1.0
    assert compare(plain, noisy, "contrast", severity=4) == paired(
        outcomes_of(plain, "contrast", "off", 0, 4), outcomes_of(noisy, "contrast", "one", 0, 4)
    )


@pytest.mark.parametrize(
    ("change", "call", "says"),
    [
        ({"digest": "e" * 64}, {"condition": "clean"}, "different test images"),
        ({"settings": Settings(pgd_steps=20)}, {"condition": "clean"}, "different strength"),
        ({}, {"condition": "contrast"}, "severity 0"),
        ({}, {"condition": "clean", "severity": 3}, "severity 3"),
        ({}, {"condition": "fgsm"}, "nothing was measured"),
        ({}, {"condition": "contrast", "severity": 6}, "not measured at severity 6"),
    ],
)
def test_figures_that_cannot_be_compared_raise_an_error(change, call, says):
    plain = evaluation(0, noisy=False)
    with pytest.raises(InputError, match=says):
        compare(plain, replace(plain, **change), **call)
