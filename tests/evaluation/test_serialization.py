import base64
import json
import os

import numpy as np
import pytest

from noiseprop.errors import RunError
from noiseprop.evaluation.results import Evaluation, Finding, Measurement
from noiseprop.evaluation.serialization import (
    format_evaluation,
    is_other_file,
    parse_evaluation,
    read_evaluation,
    write_evaluation,
)
from noiseprop.evaluation.settings import Settings
from noiseprop.files.checksum import add_checksum


def outcomes(n, seed):
    return np.random.default_rng(seed).random(n) < 0.7


def sample():
    return Evaluation(
        about={"model": "MLPN", "seed": 3, "lr": 1e-3, "noise": True, "note": None},
        dataset="mnist",
        noisy=True,
        images=1003,
        digest="ab" * 32,
        settings=Settings(conditions=("clean", "pgd", "contrast"), attack_images=13),
        versions={"torch": "2.6", "threads": 2},
        measurements=(
            Measurement("clean", "off", 0, 0, outcomes(1003, 0)),
            Measurement("clean", "vote", 0, 0, outcomes(1003, 1)),
            Measurement("pgd", "one", 20, 0, outcomes(13, 2)),
            Measurement("contrast", "one", 0, 5, outcomes(1000, 3)),
        ),
        findings=(Finding("noise", "passed", {"difference": 0.5}, "Equal rows get different noise."),),
    )


def same(a, b):
    assert len(a.measurements) == len(b.measurements)
    for one, other in zip(a.measurements, b.measurements, strict=True):
        assert one.key == other.key
        assert one.correct.dtype == other.correct.dtype == np.bool_
        np.testing.assert_array_equal(one.correct, other.correct)
    for name in ("about", "dataset", "noisy", "images", "digest", "settings", "versions", "findings"):
        assert getattr(a, name) == getattr(b, name), name


def test_a_written_evaluation_is_read_back(tmp_path):
    path = tmp_path / "evaluation.json"
    write_evaluation(sample(), path)
    same(read_evaluation(path), sample())
    assert format_evaluation(read_evaluation(path)) == path.read_text()
    assert os.listdir(tmp_path) == ["evaluation.json"]


def test_outcomes_are_packed_eight_to_a_byte_first_image_highest():
    first = json.loads(format_evaluation(sample()))["measurements"][2]
    raw = base64.b64decode(first["correct"])
    correct = outcomes(13, 2)
    assert len(raw) == 2
    for i, right in enumerate(correct):
        assert bool(raw[i // 8] >> (7 - i % 8) & 1) == right
    assert first["right"] == correct.sum()
    assert first["n"] == 13


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    path.write_text("old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError, match="No space left"):
        write_evaluation(sample(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["evaluation.json"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="could not be written"):
        write_evaluation(sample(), tmp_path / "no" / "evaluation.json")
    with pytest.raises(RunError, match="noiseprop evaluate"):
        read_evaluation(tmp_path / "evaluation.json")


def change(*path, to):
    def apply(document):
        *way, last = path
        for step in way:
            document = document[step]
        document[last] = to

    return apply


def drop(*path):
    def apply(document):
        *way, last = path
        for step in way:
            document = document[step]
        del document[last]

    return apply


def flip_a_bit(document):
    m = document["measurements"][0]
    raw = bytearray(base64.b64decode(m["correct"]))
    raw[0] ^= 0x80
    m["correct"] = base64.b64encode(bytes(raw)).decode()


def set_a_bit_beyond_the_end(document):
    m = document["measurements"][2]
    raw = bytearray(base64.b64decode(m["correct"]))
    raw[1] |= 1
    m["correct"] = base64.b64encode(bytes(raw)).decode()


DAMAGE = {
    "another format": change("format", to="something"),
    "another version": change("version", to=2),
    "a missing field": drop("settings"),
    "an unknown field": change("extra", to=1),
    "noisy as text": change("noisy", to="yes"),
    "no measurements": change("measurements", to=[]),
    "a measurement twice": lambda d: d["measurements"].append(d["measurements"][0]),
    "a measurement that is a number": change("measurements", 0, to=3),
    "a measurement without n": drop("measurements", 0, "n"),
    "an unknown condition": change("measurements", 0, "condition", to="fog"),
    "an unknown state": change("measurements", 0, "state", to="two"),
    "a severity of clean": change("measurements", 0, "severity", to=1),
    "a severity of 6": change("measurements", 3, "severity", to=6),
    "a corruption without severity": change("measurements", 3, "severity", to=0),
    "negative draws": change("measurements", 2, "attack_draws", to=-1),
    "draws as a truth": change("measurements", 2, "attack_draws", to=True),
    "a huge n": change("measurements", 0, "n", to=10**12),
    "n of nothing": change("measurements", 0, "n", to=0),
    "n too small": change("measurements", 0, "n", to=995),
    "more outcomes than images": change("images", to=1002),
    "a wrong count": change("measurements", 0, "right", to=5),
    "a flipped bit": flip_a_bit,
    "bits beyond the end": set_a_bit_beyond_the_end,
    "no base64": change("measurements", 0, "correct", to="%%%"),
    "outcomes as a list": change("measurements", 0, "correct", to=[1, 0]),
    "states of a quiet network": change("noisy", to=False),
    "an unknown setting": change("settings", "extra", to=1),
    "a missing setting": drop("settings", "seed"),
    "a setting of another type": change("settings", "pgd_steps", to=2.5),
    "a setting out of range": change("settings", "pgd_eps", to=-1.0),
    "settings as a list": change("settings", to=[]),
    "conditions as text": change("settings", "conditions", to="clean"),
    "about with a list": change("about", "model", to=["MLP"]),
    "an unknown outcome": change("findings", 0, "outcome", to="maybe"),
    "a finding's number as text": change("findings", 0, "numbers", "difference", to="0.5"),
    "a finding without sentence": drop("findings", 0, "sentence"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name, tmp_path):
    document = json.loads(format_evaluation(sample()))
    del document["sha256"]
    parse_evaluation(json.dumps(add_checksum(document)))
    DAMAGE[name](document)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(add_checksum(document)))
    with pytest.raises(
        RunError, match=r"evaluation\.json: not a usable evaluation \(.*evaluate the run again"
    ) as caught:
        read_evaluation(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DAMAGE)
def test_the_checksum_finds_all_of_it_too(name):
    document = json.loads(format_evaluation(sample()))
    DAMAGE[name](document)
    with pytest.raises(ValueError, match="its checksum does not match"):
        parse_evaluation(json.dumps(document))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"format": NaN}',
        b'{"format": "noiseprop evaluation", "version": 1' + b"0" * 10000 + b"}",
    ],
)
def test_bytes_that_are_no_evaluation(raw, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_bytes(raw)
    with pytest.raises(RunError, match="not a usable evaluation"):
        read_evaluation(path)


def test_infinite_numbers_raise_an_error(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(format_evaluation(sample()).replace("0.001", "1e999"))
    with pytest.raises(RunError, match="finite"):
        read_evaluation(path)


def test_other_files_are_distinguished_from_damaged_ones(tmp_path):
    path = tmp_path / "evaluation.json"
    text = format_evaluation(sample())
    for ours in (text, text[:1000], text[:5], "", text[:30] + "#" + text[31:]):
        path.write_text(ours)
        assert not is_other_file(path)
    for theirs in ("my notes", "{}", "[1]", '{"about": 3}'):
        path.write_text(theirs)
        assert is_other_file(path)


def test_a_giant_file_is_not_read(tmp_path):
    path = tmp_path / "evaluation.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(RunError, match=r"not a usable evaluation .*1,099,511,627,776 bytes, expected at most"):
        read_evaluation(path)
