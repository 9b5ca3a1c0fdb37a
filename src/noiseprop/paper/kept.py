"""The results file of a plan: it tells which runs need not be done again, and grows by those that are done."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from noiseprop.errors import RunError
from noiseprop.paper.plan import Plan
from noiseprop.paper.protocol import FEWER, TABLES
from noiseprop.paper.reproduction import Job, Run, recipe_of
from noiseprop.paper.results import Record, accuracy, damaged, head, image_error, make_record, read_record, write_record
from noiseprop.files.records import flatten_document

_UNTOLD = {"judged_in": "fp32"}  # how older records were made that do not tell
_ELSEWHERE = {"seeds", "recipe.epochs", "recipe.precision"}  # what runs, "epochs" and "precision" tell
_NEEDED = {"table", "protocol", "epochs", "data.test_images", "settings.attack_images", "settings.attack_draws", "runs"}


def extend(path: Path, plan: Plan, runs: Sequence[Run]) -> Record:
    """Add finished runs to a plan's results file, which is made where there is none; what it holds stays.

    Returns:
        All runs of the plan that are known, perhaps none; then no file is written.

    Raises:
        RunError: the file is damaged, holds runs of other settings or data, or cannot be written.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):  # of commands with other --runs
        kept = _kept(path, plan)
        record = make_record(plan, runs, kept)
        if len(record["runs"]) > (len(kept["runs"]) if kept else 0):
            write_record(record, path)
            return record
        return kept or record


def holds(record: Record, job: Job) -> bool:
    """Whether a job of the record's plan is among its runs."""
    return any((run["row"], run["seed"]) == (job.row.name, job.seed) for run in record["runs"])


def _kept(path: Path, plan: Plan) -> Record | None:
    """A plan's results file, if there is one."""
    if not path.exists():
        return None
    record = read_record(path)
    asked: dict[str, Any] = flatten_document(json.loads(json.dumps(head(plan))))
    there = _UNTOLD | flatten_document(record)
    skipped = _ELSEWHERE | {f"settings.{name}" for name in FEWER.get(plan.table, ())}  # by row
    if "data.digest" in there:
        skipped |= {"source"}  # it names files, which may differ where the images do not
    different = [key for key in asked if key in there and key not in skipped and there[key] != asked[key]]
    if lacks := sorted(_NEEDED - there.keys()):
        raise damaged(path, f"it does not tell {', '.join(lacks)}")
    if different:
        says = ", ".join(f"{key} is {there[key]!r} there and {asked[key]!r} now" for key in different)
        raise RunError(f"{path} holds runs of other settings: {says}; use the same or choose another folder with --out")
    try:
        _check(record["runs"], plan)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError, RunError) as error:
        raise damaged(path, error) from error
    return record


def _check(runs: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    """Raise some error unless each run is whole and there once, so that none is left out on the strength of a wreck."""
    job, names = plan.job(TABLES[plan.table][0], 0), {row.name for row in TABLES[plan.table]}
    keys = [(run["row"], run["seed"]) for run in runs]
    if len(set(keys)) < len(keys):
        raise ValueError("a run is there twice")
    for run, (row, seed) in zip(runs, keys, strict=True):
        if row not in names or type(seed) is not int or seed < 0:
            raise ValueError(f"it has a run of {row!r} with seed {seed!r}")
        epochs, course = recipe_of(job).epochs, run["course"]
        done = len(course["train_loss"])
        if not (done == epochs or ("early-stopping" in plan.protocol and 0 < done < epochs)):
            raise ValueError(f"{row}, seed {seed} has {done} of {epochs} epochs")
        for name in ("train_loss", "validation_loss", "validation_accuracy", "test_accuracy"):
            if not all(map(math.isfinite, course[name])):
                raise ValueError(f"{row}, seed {seed}: {name} is not finite")
        for condition in job.settings.conditions:
            if not (0 <= accuracy(run, condition) <= 1 and 0 <= image_error(run, condition) <= 1):
                raise ValueError(f"{row}, seed {seed}: the accuracy for {condition} is no share of its images")
