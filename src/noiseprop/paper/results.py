"""The record of a reproduced table: counts for every figure of every run, enough to remake each cell and its ±."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, cast

from noiseprop.errors import RunError
from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.settings import CORRUPTIONS
from noiseprop.evaluation.statistics import Spread, mean_std
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import add_checksum, verify_checksum
from noiseprop.files.untrusted import read_json
from noiseprop.paper.form import check_record
from noiseprop.paper.plan import Plan
from noiseprop.paper.protocol import TABLES
from noiseprop.paper.reproduction import Run, judged_on, parts_of, recipe_of

FORMAT = "noiseprop reproduction, version 1"
_NEXT = "put back an intact one, or move it away and run `noiseprop reproduce` again"

Record = Mapping[str, Any]


def make_record(plan: Plan, runs: Sequence[Run], kept: Record | None = None) -> dict[str, Any]:
    """All that is kept of the runs of a table, JSON-able.

    Each run has its course ("course": one number an epoch; sigma's mean, smallest and largest size by layer), its
    figures ("figures": under `condition/state/attack draws/severity` the images that are right, all images, and the
    ends of Wilson's 95 % interval) and the findings of `trust`; and what it was made with, where that is not what the
    record tells.

    Args:
        plan: what the runs were made by.
        runs: finished ones.
        kept: an older record of the same plan; its runs stay as they are, and so does all that it tells.
    """
    kept = kept or {"runs": [], "made_with": dict(runs[0].evaluation.versions) if runs else {}}
    ours = [_run_record(run, kept.get("made_with", {})) for run in runs]
    by_key = {(run["row"], run["seed"]): run for run in [*ours, *kept["runs"]]}
    rows = {row.name: row for row in TABLES[plan.table] if any(row.name == name for name, _ in by_key)}
    order = list(rows)
    images = judged_on(plan.job(TABLES[plan.table][0], 0))[0]
    return {
        **head(plan),
        **kept,
        "seeds": sorted({seed for _, seed in by_key}),
        "trust_images": {name: min(plan.job(row, 0).settings.trust_images, images) for name, row in rows.items()},
        "runs": sorted(by_key.values(), key=lambda run: (run["seed"], order.index(run["row"]))),
    }


def head(plan: Plan) -> dict[str, Any]:
    """What the record of a plan tells of all its runs: what they were asked for, and on which data."""
    job = plan.job(TABLES[plan.table][0], 0)
    parts, (images, digest) = parts_of(job), judged_on(job)
    return {
        "format": FORMAT,
        "table": plan.table,
        "protocol": plan.protocol.name,
        "departures": sorted(plan.protocol.departures),
        "data": {"name": plan.data, "test_images": images, "digest": digest},
        "epochs": plan.epochs,
        "precision": plan.precision,
        "seeds": [],
        "settings": asdict(job.settings),
        "made_with": {},
        "recipe": asdict(recipe_of(job)),
        "judged_in": plan.judged_in,
        "source": without_folder(parts.test.source),
        "images": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
        "classes": len(parts.test.classes),
    }


def without_folder(source: str) -> str:
    """A data set's source without the folder, which means nothing on another machine.

    Examples:
        >>> without_folder("Two: 2 images from /data/my files/two.zip, which is not the official archive")
        'Two: 2 images from two.zip, which is not the official archive'
    """
    return re.sub(r"(?<= from )[^,]*/", "", source)


def _run_record(run: Run, made_with: Mapping[str, Any]) -> dict[str, Any]:
    versions = dict(run.evaluation.versions)
    return {
        "row": run.job.row.name,
        "seed": run.job.seed,
        "noisy": run.evaluation.noisy,
        "seconds_per_epoch": round(median(epoch.seconds for epoch in run.epochs), 3),
        "course": _course(run),
        "figures": _figures(run.evaluation),
        "findings": [{"name": f.name, "outcome": f.outcome, "sentence": f.sentence} for f in run.evaluation.findings],
        **({} if versions == made_with else {"made_with": versions}),
    }


def _course(run: Run) -> dict[str, Any]:
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    course: dict[str, Any] = {name: [_short(getattr(epoch, name)) for epoch in run.epochs] for name in names}
    layers = run.epochs[0].sigma
    course["sigma"] = {
        layer.removesuffix(".noise"): {
            key: [_short(getattr(epoch.sigma[layer], key)) for epoch in run.epochs] for key in ("mean", "min", "max")
        }
        for layer in layers
    }
    return course | {"test_accuracy": run.test_accuracy}


def _figures(evaluation: Evaluation) -> dict[str, list[float]]:
    return {
        "/".join(map(str, m.key)): [
            int(m.correct.sum()),
            int(m.correct.size),
            _short(m.interval.low),
            _short(m.interval.high),
        ]
        for m in evaluation.measurements
    }


def _short(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def write_record(record: Record, path: Path) -> None:
    """Write a record aside as sealed JSON with a line for each run, then rename it.

    Raises:
        RunError: the file cannot be written; an older one stays as it was.
    """
    head = {key: value for key, value in add_checksum(record).items() if key != "runs"}
    text = json.dumps(head, indent=1, allow_nan=False)
    runs = ",\n  ".join(json.dumps(run, allow_nan=False) for run in record["runs"])
    text = f'{text[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Raises:
        RunError: there is no such file, or it is too large, damaged or no record.
    """
    try:
        record = read_json(path)
        record = verify_checksum(record) if isinstance(record, dict) else record
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); run `noiseprop reproduce` first") from error
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RunError(f"{path} is no record of format {FORMAT!r}; {_NEXT}")
    try:
        check_record(record)
    except ValueError as error:
        raise damaged(path, error) from error
    return cast(Record, record)


def damaged(path: Path, why: object) -> RunError:
    """The error that a record is damaged."""
    return RunError(f"{path} is damaged ({why}); {_NEXT}")


def runs_of(record: Record, row: str) -> list[Record]:
    """The runs of a row, by seed.

    Raises:
        RunError: there are none.
    """
    found = sorted((run for run in record["runs"] if run["row"] == row), key=lambda run: run["seed"])
    if not found:
        raise RunError(f"the record of {record['table']} has no run of {row!r}; run `noiseprop reproduce` again")
    return found


def accuracy(run: Record, condition: str, *, state: str | None = None, draws: int | None = None) -> float:
    """A run's accuracy under a condition, averaged over a corruption's severities.

    Args:
        run: of a record.
        condition: one of CONDITIONS.
        state: "off", "one" or "vote"; "one" of a random network and "off" of any other where None.
        draws: of the attack (EOT); the most there are where None.

    Raises:
        RunError: nothing of this kind is recorded.
    """
    found = _found(run, condition, state, draws)
    return sum(right / n for right, n, _, _ in found) / len(found)


def image_interval(
    run: Record, condition: str, *, state: str | None = None, draws: int | None = None
) -> tuple[float, float]:
    """What the choice of images leaves open of `accuracy`: the ends of Wilson's 95 % interval.

    Severities of a corruption share their images, so the ends of their average are at most as far as those of theirs
    on average.
    """
    found = _found(run, condition, state, draws)
    low, high = (sum(figure[end] for figure in found) / len(found) for end in (2, 3))
    return low, high


def image_error(run: Record, condition: str, *, state: str | None = None, draws: int | None = None) -> float:
    """Half of `image_interval`."""
    low, high = image_interval(run, condition, state=state, draws=draws)
    return (high - low) / 2


def count(run: Record, condition: str, *, state: str, draws: int) -> int:
    """Of how many images a figure is; arguments as for `accuracy`."""
    return int(_found(run, condition, state, draws)[0][1])


def _found(run: Record, condition: str, state: str | None, draws: int | None) -> list[list[float]]:
    """The figures of a condition, one or five: right, all, and the ends of the interval."""
    state = state or ("one" if run["noisy"] else "off")
    found: dict[int, list[list[float]]] = {}
    for key, figure in run["figures"].items():
        name, of_state, attack_draws, _ = key.split("/")
        if (name, of_state) == (condition, state):
            found.setdefault(int(attack_draws), []).append(figure)
    draws = max(found, default=0) if draws is None else draws
    if len(found.get(draws, ())) != (5 if condition in CORRUPTIONS else 1):
        raise RunError(
            f"{run['row']}, seed {run['seed']}: no accuracy for {condition}, {state}, EOT-{draws} is recorded"
        )
    return found[draws]


def spread(record: Record, row: str, condition: str, *, state: str | None = None, draws: int | None = None) -> Spread:
    """Mean and standard deviation over the seeds; arguments as for `accuracy`."""
    return mean_std([accuracy(run, condition, state=state, draws=draws) for run in runs_of(record, row)])


def cell(record: Record, row: str, condition: str, *, state: str | None = None, draws: int | None = None) -> str:
    """The figure as tables show it: mean ± standard deviation over seeds, or a single seed's ± `image_error`."""
    runs = runs_of(record, row)
    if len(runs) > 1:
        return str(spread(record, row, condition, state=state, draws=draws))
    value, error = (of(runs[0], condition, state=state, draws=draws) for of in (accuracy, image_error))
    return f"{value:.3f} ± {error:.3f}"
