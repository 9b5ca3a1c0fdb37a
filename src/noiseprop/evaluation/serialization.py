"""Evaluations on disk: versioned JSON with bit-packed outcomes, written aside and renamed, and read with suspicion."""

import base64
import binascii
import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from noiseprop.corruptions import SEVERITIES
from noiseprop.errors import InputError, RunError
from noiseprop.evaluation.results import OUTCOMES, STATES, Evaluation, Finding, Measurement, Scalar
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS, NO_LIMIT, Settings
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import sealed, unsealed
from noiseprop.files.untrusted import parse_json, read_text

FORMAT = "noiseprop evaluation"
VERSION = 1
MAX_IMAGES = 10_000_000
_START = b'{\n "about": {'
_LIMITS = ("eot_images", "vote_images")  # settings that older files lack: they knew no limits


def to_json(evaluation: Evaluation) -> str:
    """The evaluation as JSON text; equal evaluations give equal text.

    Outcomes are packed eight to a byte (first image in the highest bit) and written in base64. `right` repeats their
    number of ones, for the eye; `sha256` is of all else, as a check against damage.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "about": dict(evaluation.about),
        "dataset": evaluation.dataset,
        "noisy": evaluation.noisy,
        "images": evaluation.images,
        "digest": evaluation.digest,
        "settings": asdict(evaluation.settings),
        "versions": dict(evaluation.versions),
        "measurements": [measurement_document(m) for m in evaluation.measurements],
        "findings": [finding_document(f) for f in evaluation.findings],
    }
    return json.dumps(sealed(document), indent=1, sort_keys=True, allow_nan=False) + "\n"


def write(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON, aside and then renamed, so that `path` never holds half a file.

    Args:
        evaluation: what `evaluate` returned.
        path: the file; its folder must exist.

    Raises:
        RunError: the folder does not exist, cannot be written to, or is full; an older file stays as it was.
    """
    text = to_json(evaluation)
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read(path: Path) -> Evaluation:
    """Read an evaluation, checking every field, so that a table is never made from a damaged or foreign file.

    Args:
        path: a file that `write` wrote, such as a run's evaluation.json.

    Returns:
        The evaluation as it was written.

    Raises:
        RunError: there is no such file, it is too large, no evaluation, of another version, or inconsistent.
    """
    try:
        return from_json(read_text(path))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run `noiseprop evaluate` first.") from error
    except ValueError as error:  # InputError is one too
        raise RunError(f"{path}: not a usable evaluation ({error}); evaluate the run again.") from error


def is_foreign(path: Path) -> bool:
    """Whether a file begins in a way in which nothing that `write` writes does, be it whole, damaged or cut short."""
    if not path.is_file():  # a pipe would be waited for
        return True
    with path.open("rb") as file:
        start = file.read(len(_START))
    return start != _START[: len(start)]


def from_json(text: str) -> Evaluation:
    """The evaluation that `to_json` wrote.

    Raises:
        InputError: a field is missing, unknown, of another type, out of range or at odds with another.
        ValueError: as for `parse_json`, or it is not what was written.
    """
    document = unsealed(_object(parse_json(text), "the document"))
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise InputError(
            f"format {document.get('format')!r} version {document.get('version')!r} came, "
            f"expected {FORMAT!r} version {VERSION}"
        )
    names = {f.name for f in fields(Evaluation)} | {"format", "version"}
    if set(document) != names:
        raise InputError(f"its fields are {sorted(document)}, expected {sorted(names)}")
    noisy = document["noisy"]
    if not isinstance(noisy, bool):
        raise InputError(f"noisy is {noisy!r}, expected true or false")
    measurements = tuple(measurement_from(_object(m, "a measurement")) for m in _list(document["measurements"]))
    images = _whole(document["images"], "images", 1, MAX_IMAGES)
    _check_together(measurements, images, noisy)
    return Evaluation(
        about=_scalars(document["about"], "about"),
        dataset=_text(document["dataset"], "dataset"),
        noisy=noisy,
        images=images,
        digest=_text(document["digest"], "digest"),
        settings=_settings(_object(document["settings"], "settings")),
        versions=_scalars(document["versions"], "versions"),
        measurements=measurements,
        findings=tuple(finding_from(_object(f, "a finding")) for f in _list(document["findings"])),
    )


def measurement_document(m: Measurement) -> dict[str, Scalar]:
    """A measurement, JSON-able."""
    return {
        "condition": m.condition,
        "state": m.state,
        "attack_draws": m.attack_draws,
        "severity": m.severity,
        "n": int(m.correct.size),
        "right": int(m.correct.sum()),
        "correct": base64.b64encode(np.packbits(m.correct).tobytes()).decode("ascii"),
    }


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding, JSON-able."""
    return {**asdict(finding), "numbers": dict(finding.numbers)}


def measurement_from(m: dict[str, Any]) -> Measurement:
    """The measurement that `measurement_document` wrote.

    Raises:
        InputError: a field is missing, unknown, out of range or at odds with another.
    """
    if set(m) != {"condition", "state", "attack_draws", "severity", "n", "right", "correct"}:
        raise InputError(f"a measurement has the fields {sorted(m)}")
    if m["condition"] not in CONDITIONS or m["state"] not in STATES:
        raise InputError(f"a measurement is of condition {m['condition']!r} in state {m['state']!r}")
    severity = _whole(m["severity"], "severity", 0, max(SEVERITIES))
    if (severity > 0) != (m["condition"] in CORRUPTIONS):
        raise InputError(f"{m['condition']} has severity {severity}")
    n = _whole(m["n"], "n", 1, MAX_IMAGES)
    correct = _unpack(m["correct"], n)
    if int(correct.sum()) != m["right"]:
        raise InputError(f"{m['condition']}: {m['right']!r} right are stated but {int(correct.sum())} are recorded")
    return Measurement(
        m["condition"], m["state"], _whole(m["attack_draws"], "attack_draws", 0, 10**6), severity, correct
    )


def _unpack(text: object, n: int) -> npt.NDArray[np.bool_]:
    try:
        packed = np.frombuffer(base64.b64decode(_text(text, "correct"), validate=True), dtype=np.uint8)
    except binascii.Error as error:
        raise InputError(f"outcomes are not base64 ({error})") from error
    if packed.size != math.ceil(n / 8):
        raise InputError(f"{packed.size} bytes of outcomes came for {n} images, expected {math.ceil(n / 8)}")
    bits = np.unpackbits(packed)
    if bits[n:].any():
        raise InputError(f"outcomes go on beyond {n} images")
    return bits[:n].astype(np.bool_)


def _check_together(measurements: tuple[Measurement, ...], images: int, noisy: bool) -> None:
    keys = [m.key for m in measurements]
    if len(set(keys)) != len(keys) or not keys:
        raise InputError("it holds no measurement, or one of them twice")
    for m in measurements:
        if m.correct.size > images:
            raise InputError(f"{m.condition}: {m.correct.size} outcomes came for a test split of {images} images")
        if not noisy and m.state != "off":
            raise InputError(f"{m.condition}: state {m.state!r} of a network that is said to have no noise")


def _settings(document: dict[str, Any]) -> Settings:
    expected = {f.name: f.default for f in fields(Settings)}
    document = dict.fromkeys(_LIMITS, NO_LIMIT) | document
    if set(document) != set(expected):
        raise InputError(f"settings are {sorted(document)}, expected {sorted(expected)}")
    parsers: dict[type, Callable[[str, Any], Any]] = {
        int: lambda name, value: _whole(value, name, 0, 2**62),
        float: lambda name, value: _number(value, name),
        str: lambda name, value: _text(value, name),
        tuple: lambda name, value: tuple(_condition_or_draws(v, name) for v in _list(value)),
    }
    return Settings(**{name: parsers[type(default)](name, document[name]) for name, default in expected.items()})


def _condition_or_draws(value: object, name: str) -> str | int:
    return _text(value, name) if name == "conditions" else _whole(value, name, 1, 10**6)


def finding_from(document: dict[str, Any]) -> Finding:
    """The finding that `finding_document` wrote.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    if set(document) != {f.name for f in fields(Finding)} or document["outcome"] not in OUTCOMES:
        raise InputError(f"a finding has the fields {sorted(document)} and ended {document.get('outcome')!r}")
    numbers = _object(document["numbers"], "a finding's numbers")
    return Finding(
        _text(document["name"], "a finding's name"),
        document["outcome"],
        {key: _number(value, key) for key, value in numbers.items()},
        _text(document["sentence"], "a finding's sentence"),
    )


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name} is a {type(value).__name__}, expected an object")
    return cast("dict[str, Any]", value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"a {type(value).__name__} came, expected a list")
    return cast("list[Any]", value)


def _scalars(value: object, name: str) -> dict[str, Scalar]:
    found = _object(value, name)
    for key, item in found.items():
        if not (item is None or isinstance(item, (str, int)) or (isinstance(item, float) and math.isfinite(item))):
            raise InputError(f"{name}: {key} is {item!r}, expected text, a finite number, true, false or null")
    return cast("dict[str, Scalar]", found)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}, expected text")
    return value


def _whole(value: object, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
    return value


def _number(value: object, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}, expected a finite number")
    return value
