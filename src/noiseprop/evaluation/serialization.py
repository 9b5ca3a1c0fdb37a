"""Evaluations as files: validated JSON records with a checksum and bit-packed outcomes."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from noiseprop.errors import RunError
from noiseprop.evaluation.results import Evaluation, Finding, Measurement, Scalar, State
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS, Settings
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import verify_checksum
from noiseprop.files.records import format_record, parse_record
from noiseprop.files.untrusted import parse_json, read_text

MAX_OUTCOMES = 10_000_000
_START = b'{\n  "format":'

ImageCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTCOMES)]


class MeasurementRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measurement in a file.

    Attributes:
        condition: as in `Measurement`, like `state`, `attack_draws` and `severity`.
        n: number of images.
        right: number of correct ones, for human readers.
        correct: outcomes, eight to a byte, first image in the highest bit; base64 in JSON.
    """

    condition: str
    state: State
    attack_draws: Annotated[int, msgspec.Meta(ge=0, le=10**6)]
    severity: Annotated[int, msgspec.Meta(ge=0, le=5)]
    n: ImageCount
    right: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTCOMES)]
    correct: bytes

    def __post_init__(self) -> None:
        """Check fields against each other.

        Raises:
            ValueError: they contradict each other.
        """
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition {self.condition!r} is unknown")
        if (self.severity > 0) != (self.condition in CORRUPTIONS):
            raise ValueError(f"{self.condition} has severity {self.severity}")
        if len(self.correct) != math.ceil(self.n / 8):
            raise ValueError(f"{len(self.correct)} bytes of outcomes for {self.n} images")
        bits = np.unpackbits(np.frombuffer(self.correct, dtype=np.uint8))
        if bits[self.n :].any():
            raise ValueError(f"outcomes continue beyond {self.n} images")
        if int(bits.sum()) != self.right:
            raise ValueError(f"{self.condition}: {self.right} right are stated but {int(bits.sum())} are recorded")

    @classmethod
    def from_measurement(cls, m: Measurement) -> "MeasurementRecord":
        """Return the record of a measurement."""
        packed = np.packbits(m.correct).tobytes()
        return cls(m.condition, m.state, m.attack_draws, m.severity, m.correct.size, int(m.correct.sum()), packed)

    def to_measurement(self) -> Measurement:
        """Return the measurement of this record."""
        bits = np.unpackbits(np.frombuffer(self.correct, dtype=np.uint8))[: self.n]
        return Measurement(self.condition, self.state, self.attack_draws, self.severity, bits.astype(np.bool_))


class EvaluationHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about an evaluation in a file but its results; fields as in `Evaluation`."""

    about: dict[str, Scalar]
    dataset: str
    noisy: bool
    images: ImageCount
    digest: str
    settings: Settings
    versions: dict[str, Scalar]


class EvaluationRecord(EvaluationHead, frozen=True, tag_field="format", tag="noiseprop evaluation"):
    """Evaluation in a file; fields as in `Evaluation`."""

    measurements: Annotated[tuple[MeasurementRecord, ...], msgspec.Meta(min_length=1)]
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        """Check measurements against each other and against the other fields.

        Raises:
            ValueError: they contradict each other.
        """
        keys = {(m.condition, m.state, m.attack_draws, m.severity) for m in self.measurements}
        if len(keys) < len(self.measurements):
            raise ValueError("one of its measurements occurs twice")
        for m in self.measurements:
            if m.n > self.images:
                raise ValueError(f"{m.condition}: {m.n} outcomes for a test split of {self.images} images")
            if not self.noisy and m.state != "off":
                raise ValueError(f"{m.condition}: state {m.state!r} of a network that is stated to have no noise")


def head_fields(evaluation: Evaluation | EvaluationRecord) -> dict[str, Any]:
    """Return the fields of `EvaluationHead` by name."""
    return {name: getattr(evaluation, name) for name in EvaluationHead.__struct_fields__}


def format_evaluation(evaluation: Evaluation) -> str:
    """Return an evaluation as JSON text; equal evaluations give equal text."""
    measurements = tuple(MeasurementRecord.from_measurement(m) for m in evaluation.measurements)
    record = EvaluationRecord(**head_fields(evaluation), measurements=measurements, findings=evaluation.findings)
    return format_record(record, indent=2) + "\n"


def parse_evaluation(text: str) -> Evaluation:
    """Return the evaluation that `format_evaluation` wrote.

    Raises:
        ValueError: the text is not JSON, its checksum does not match, or a field is missing, unknown, of another type,
            out of range or contradicts another.
    """
    record = parse_record(text, EvaluationRecord)
    written = json.loads(msgspec.json.encode(record))
    if written != verify_checksum(parse_json(text)):  # msgspec ignores unknown and missing fields of dataclasses
        raise ValueError("fields of its settings or findings are missing or unknown")
    measurements = tuple(m.to_measurement() for m in record.measurements)
    return Evaluation(**head_fields(record), measurements=measurements, findings=record.findings)


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON; `path` never holds a partial file.

    Args:
        evaluation: result of `evaluate`.
        path: the file; its folder must exist.

    Raises:
        RunError: the folder does not exist, cannot be written to, or is full; an older file stays unchanged.
    """
    text = format_evaluation(evaluation)
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation and check every field, so that no table is made from a damaged or foreign file.

    Args:
        path: a file that `write_evaluation` wrote, such as the evaluation.json of a run.

    Raises:
        RunError: the file does not exist, is too large, or is not a valid evaluation.
    """
    try:
        return parse_evaluation(read_text(path))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run `noiseprop evaluate` first.") from error
    except ValueError as error:
        raise RunError(f"{path}: not a usable evaluation ({error}); evaluate the run again.") from error


def is_other_file(path: Path) -> bool:
    """Return whether a file starts unlike any file of `write_evaluation`, be it complete, damaged or truncated."""
    if not path.is_file():  # reading a pipe would block
        return True
    with path.open("rb") as file:
        start = file.read(len(_START))
    return start != _START[: len(start)]
