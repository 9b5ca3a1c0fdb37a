"""Checkpoint of an evaluation: a file of its finished steps, from which an interrupted one resumes."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from torch import nn

from noiseprop.errors import RunError
from noiseprop.evaluation.results import Finding, Measurement
from noiseprop.evaluation.serialization import EvaluationHead, MeasurementRecord
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import hash_tensors
from noiseprop.files.records import format_record, parse_record
from noiseprop.files.untrusted import read_text


class EvaluationIdentity(EvaluationHead, frozen=True):
    """Everything that determines the figures of an evaluation.

    Attributes:
        model: digest of the network's state, see `model_digest`.
        surrogate: digest of the surrogate's state, or None without a surrogate.
    """

    model: str | None
    surrogate: str | None


class StepRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Finished step: the measurements of a condition, or the finding of a sanity check."""

    step: str
    measurements: tuple[MeasurementRecord, ...] = ()
    finding: Finding | None = None


class PartialEvaluation:
    """Finished steps of an evaluation in a file: a line that identifies the evaluation, then one line per step.

    The file of another evaluation, or a damaged one, is ignored and overwritten: its figures can be measured again. In
    a process group, all processes read the file and the one with `writes` writes it.
    """

    def __init__(self, path: Path | None, identity: msgspec.Struct | None, *, writes: bool = True) -> None:
        self._path = path if writes and identity is not None else None
        self._lines = [format_record(identity)] if identity is not None else []
        self._done: dict[str, StepRecord] = {}
        if path is not None and identity is not None:
            self._load_steps(path)

    @property
    def finished_steps(self) -> list[str]:
        """Return the names of the finished steps."""
        return list(self._done)

    def load_or_measure(self, step: str, measure: Callable[[], list[Measurement]]) -> list[Measurement]:
        """Return the stored measurements of a step, or make and store them."""
        if step in self._done:
            return [m.to_measurement() for m in self._done[step].measurements]
        measured = measure()
        self._save_step(StepRecord(step, tuple(MeasurementRecord.from_measurement(m) for m in measured)))
        return measured

    def load_or_check(self, step: str, check: Callable[[], Finding]) -> Finding:
        """Return the stored finding of a sanity check, or run the check and store its finding."""
        if step in self._done and (stored := self._done[step].finding) is not None:
            return stored
        finding = check()
        self._save_step(StepRecord(step, finding=finding))
        return finding

    def _save_step(self, record: StepRecord) -> None:
        if self._path is None:
            return
        self._lines.append(format_record(record))
        text = "\n".join(self._lines) + "\n"
        write_aside(self._path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def _load_steps(self, path: Path) -> None:
        try:
            first, *lines = read_text(path).splitlines()
            if first != self._lines[0]:
                return
            records = [parse_record(line, StepRecord) for line in lines]
        except (OSError, ValueError, RunError):
            return
        self._lines += lines
        self._done = {record.step: record for record in records}


def model_digest(model: nn.Module | None) -> str | None:
    """Return the SHA-256, in hex, of a model's parameters and buffers by name; None without a model."""
    return None if model is None else hash_tensors(model.state_dict())
