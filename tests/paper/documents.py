"""Results as plain documents that tests edit: scores by `condition/state/draws/severity`."""

import copy
import json
from typing import Any

import msgspec

from noiseprop.paper.figure4 import SaliencyResult
from noiseprop.paper.results import TableResult


def to_document(record: TableResult) -> dict[str, Any]:
    """Return a result as a dict, the scores of each run as {key: [right, images, low, high]}."""
    document = json.loads(msgspec.json.encode(record))
    for run in document["runs"]:
        run["figures"] = {"/".join(map(str, score[:4])): list(score[4:]) for score in run.pop("scores")}
    return document


def to_builtins(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document in the form of the file, without its checksum."""
    document = copy.deepcopy(document)
    document.pop("seeds", None)
    for run in document["runs"]:
        if run is not None and "figures" in run:
            run["scores"] = [_parse_key(key) + list(figure) for key, figure in run.pop("figures").items()]
    return document


def to_table(document: dict[str, Any]) -> TableResult:
    """Return the result that a document describes."""
    return msgspec.convert(to_builtins(document), TableResult)


def to_saliency(document: dict[str, Any]) -> SaliencyResult:
    """Return the result of Figure 4 that a document describes."""
    return msgspec.convert(document, SaliencyResult)


def _parse_key(key: str) -> list[Any]:
    condition, state, draws, severity = key.split("/")
    return [condition, state, int(draws), int(severity)]
