"""Evaluations that are stopped go on; with limits only the first images are voted or averaged on."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from noiseprop import add_noise, reset_noise
from noiseprop.data import Dataset
from noiseprop.errors import InputError
from noiseprop.evaluation.checkpoint import model_digest
from noiseprop.evaluation.evaluate import evaluate
from noiseprop.evaluation.serialization import format_evaluation, parse_evaluation
from noiseprop.evaluation.settings import Settings
from noiseprop.models.mlp import mlp

suite = import_module("noiseprop.evaluation.evaluate")  # not the function of this name

QUICK = Settings(
    conditions=("clean", "fgsm", "pgd", "contrast"),
    attack_images=40,
    trust_images=16,
    attack_draws=(1, 4),
    vote_draws=4,
    batch_size=64,
    pgd_steps=2,
)


def images(count: int = 60) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator).to(torch.uint8)
    return Dataset("noise", pixels, torch.randint(0, 3, (count,), generator=generator), tuple("abc"))


def noisy(seed: int = 0):
    torch.manual_seed(seed)
    return add_noise(mlp((16, 12, 3)), ["fc1"], init=1.0, example=torch.zeros(1, 1, 4, 4))


class Stop(Exception):  # noqa: N818 - no error
    pass


def stopping_before(step: str):
    def progress(done: int, total: int, name: str) -> None:
        if name == step:
            raise Stop

    return progress


@pytest.mark.parametrize("step", ["fgsm, EOT-4", "contrast 3", "check convergence", "check frozen"])
def test_an_interrupted_evaluation_resumes_bit_identically(step, tmp_path):
    kept = tmp_path / "part.jsonl"
    whole = evaluate(noisy(), images(), settings=QUICK)
    with pytest.raises(Stop):
        evaluate(noisy(), images(), settings=QUICK, checkpoint=kept, progress=stopping_before(step))
    done = [json.loads(line)["step"] for line in kept.read_text().splitlines()[1:]]
    assert done
    assert step not in done
    calls: list[str] = []
    original = suite.score_states

    def counting(*args, **kwargs):
        calls.append("score")
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "score_states", counting)
        resumed = evaluate(noisy(), images(), settings=QUICK, checkpoint=kept)
    assert format_evaluation(resumed) == format_evaluation(whole)
    scored = [name for name in done if not name.startswith("check")]
    assert len(calls) == 12 - len(scored)  # of 12 steps: clean, 2 x 3 attacks, 5 severities


@pytest.mark.parametrize("change", ["model", "settings", "about", "images", "damage", "torn"])
def test_steps_of_another_evaluation_are_not_used(change, tmp_path):
    kept = tmp_path / "part.jsonl"
    evaluate(noisy(), images(), settings=QUICK, checkpoint=kept)
    model, data, settings, about = noisy(), images(), QUICK, {}
    if change == "model":
        model = noisy(1)
    elif change == "settings":
        settings = replace(QUICK, seed=1)
    elif change == "about":
        about = {"epochs": 3}
    elif change == "images":
        data = images(50)
    elif change == "damage":
        text = kept.read_text().splitlines()
        text[1] = text[1].replace('"right": ', '"right": 1')
        kept.write_text("\n".join(text) + "\n")
    else:
        kept.write_text(kept.read_text()[:-40])
    found = evaluate(model, data, settings=settings, about=about, checkpoint=kept)
    assert format_evaluation(found) == format_evaluation(evaluate(model, data, settings=settings, about=about))


def test_limits_leave_the_first_images_as_they_are():
    whole = evaluate(noisy(), images(), settings=QUICK)
    limited = evaluate(noisy(), images(), settings=replace(QUICK, eot_images=10, vote_images=25))
    assert [m.key for m in limited.measurements] == [m.key for m in whole.measurements]
    for few, all_ in zip(limited.measurements, whole.measurements, strict=True):
        if few.state == "vote" or few.attack_draws == 4:
            expected = 10 if few.attack_draws == 4 else min(25, all_.correct.size)
            assert few.correct.size == expected
        else:
            assert few.correct.size == all_.correct.size
        if few.state == "off" or (few.attack_draws == 0 and few.state == "vote"):
            np.testing.assert_array_equal(few.correct, all_.correct[: few.correct.size])
    ones = [m for m in limited.measurements if m.state == "one" and m.condition == "clean"]
    assert ones[0].correct.size == 60  # 25 from the votes' first draws, 35 from separate draws
    assert parse_evaluation(format_evaluation(limited)).settings == limited.settings


def test_a_limit_of_no_images_is_an_error():
    with pytest.raises(InputError, match="eot_images is 0"):
        Settings(eot_images=0)


def test_fingerprints_tell_models_and_seeds_of_noise_apart():
    one = model_digest(noisy())
    assert one == model_digest(noisy())
    assert model_digest(None) is None
    other = noisy()
    reset_noise(other, 2**61 + 1)
    near = noisy()
    reset_noise(near, 2**61 + 2)
    assert len({one, model_digest(noisy(1)), model_digest(other), model_digest(near)}) == 4
    plain = mlp((16, 12, 3))
    assert model_digest(plain) == model_digest(plain.to(memory_format=torch.channels_last))
