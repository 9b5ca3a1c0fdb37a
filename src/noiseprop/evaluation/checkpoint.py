"""The finished steps of an evaluation under way, kept in a file: one that was killed goes on where it stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from noiseprop.errors import InputError, RunError
from noiseprop.evaluation.results import Finding, Measurement
from noiseprop.evaluation.serialization import finding_document, finding_from, measurement_document, measurement_from
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import sealed, tensors_digest, unsealed
from noiseprop.files.untrusted import parse_json, read_text


class Partial:
    """What has been measured so far: a line that tells the evaluation, then one sealed JSON line for each step.

    A file of another evaluation, or a damaged one, counts as none and is written anew: its figures can be made again.
    Of several processes, all read the file and one `writes` to it.
    """

    def __init__(self, path: Path | None, what: Mapping[str, Any], *, writes: bool = True) -> None:
        self._path = path if writes else None
        self._lines = [json.dumps(what, sort_keys=True)]
        self._done: dict[str, Any] = {}
        if path is not None:
            self._read(path)

    @property
    def steps(self) -> list[str]:
        """The names of the steps that are done."""
        return list(self._done)

    def measured(self, step: str, measure: Callable[[], list[Measurement]]) -> list[Measurement]:
        """The measurements of a step: the kept ones, or those that `measure` makes now."""
        if isinstance(kept := self._done.get(step), list):
            return [measurement_from(document) for document in kept]
        found = measure()
        self._keep(step, [measurement_document(m) for m in found])
        return found

    def checked(self, step: str, check: Callable[[], Finding]) -> Finding:
        """The finding of a check: the kept one, or what `check` finds now."""
        if isinstance(kept := self._done.get(step), dict):
            return finding_from(kept)
        found = check()
        self._keep(step, finding_document(found))
        return found

    def _keep(self, step: str, document: Any) -> None:
        if self._path is None:
            return
        self._lines.append(json.dumps(sealed({"step": step, "found": document}), allow_nan=False))
        text = "\n".join(self._lines) + "\n"
        write_aside(self._path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def _read(self, path: Path) -> None:
        try:
            head, *lines = read_text(path).splitlines()
            if head != self._lines[0]:
                return
            documents = [unsealed(parse_json(line)) for line in lines]
            done = {document["step"]: document["found"] for document in documents}
            for found in done.values():  # now, while all can still be dropped
                _ = [measurement_from(m) for m in found] if isinstance(found, list) else finding_from(found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError, RunError):
            return
        self._lines += lines
        self._done = done


def fingerprint(model: nn.Module | None) -> str | None:
    """SHA-256 of a model's parameters and buffers by name, in hex; None of none."""
    return None if model is None else tensors_digest(model.state_dict())
