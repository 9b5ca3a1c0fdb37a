"""Results of a reproduced table: typed records from which every cell and its ± can be recomputed."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import msgspec
from filelock import FileLock
from msgspec import Meta

from noiseprop.errors import RunError
from noiseprop.evaluation.results import Evaluation, Outcome, Scalar, State
from noiseprop.evaluation.settings import CONDITIONS, CORRUPTIONS, Settings
from noiseprop.evaluation.statistics import Spread, mean_std
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import add_checksum
from noiseprop.files.records import flatten_document, parse_record
from noiseprop.files.untrusted import read_text
from noiseprop.paper.job import Job, TableSpec, describe_test_images, load_parts
from noiseprop.paper.published import PUBLISHED
from noiseprop.paper.run_job import FinishedRun, is_finished, read_finished
from noiseprop.paper.specs import EVERYWHERE_LIMITS, TABLES
from noiseprop.training import Precision, Recipe

_NEXT = "restore an intact copy, or move it away and run `noiseprop reproduce` again"
_ROUNDING = 1e-5  # shares are saved with six digits

_Count = Annotated[int, Meta(ge=0, le=10**9)]
_Images = Annotated[int, Meta(ge=1, le=10**9)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Value = Annotated[float, Meta(ge=-1e12, le=1e12)]  # squares of larger losses would overflow
_Curve = Annotated[tuple[_Value, ...], Meta(max_length=100_000)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Score(_Record, frozen=True, array_like=True):
    """Number of correct images under one condition, with Wilson's interval; other fields as in `Measurement`."""

    condition: str
    state: State
    attack_draws: _Count
    severity: Annotated[int, Meta(ge=0, le=5)]
    right: _Count
    images: _Images
    low: _Share
    high: _Share

    def __post_init__(self) -> None:
        """Check that the interval contains the share of correct images."""
        share = self.right / self.images
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition {self.condition!r} is unknown")
        if not (self.low <= share + _ROUNDING and share <= self.high + _ROUNDING and self.low < self.high):
            raise ValueError(f"{self.condition}: {self.right} of {self.images} is not within {self.low} to {self.high}")


class SigmaCourse(_Record, frozen=True):
    """Mean, smallest and largest |sigma| of a layer by epoch."""

    mean: _Curve
    min: _Curve
    max: _Curve


class TrainingCourse(_Record, frozen=True):
    """Course of a training: one number for each epoch; test accuracy only where it was measured."""

    train_loss: _Curve
    train_accuracy: _Curve
    validation_loss: _Curve
    validation_accuracy: _Curve
    sigma: dict[str, SigmaCourse]
    test_accuracy: _Curve

    @property
    def epochs(self) -> int:
        """Return the number of epochs."""
        return len(self.train_loss)

    def __post_init__(self) -> None:
        """Check that all curves have the same length."""
        curves = [self.train_loss, self.train_accuracy, self.validation_loss, self.validation_accuracy]
        curves += [curve for layer in self.sigma.values() for curve in (layer.mean, layer.min, layer.max)]
        if {len(curve) for curve in curves} != {self.epochs} or not self.epochs:
            raise ValueError("a course has curves of different lengths or of none")
        if len(self.test_accuracy) not in (0, self.epochs):
            raise ValueError("a course has test accuracies of another number of epochs")


class CheckResult(_Record, frozen=True):
    """Outcome of one sanity check."""

    name: str
    outcome: Outcome
    sentence: str


class RunResult(_Record, frozen=True, omit_defaults=True):
    """Result of one run; `made_with` only where it differs from that of the table."""

    row: str
    seed: Annotated[int, Meta(ge=0, lt=2**62)]
    noisy: bool
    seconds_per_epoch: Annotated[float, Meta(ge=0, le=1e12)]
    course: TrainingCourse
    scores: tuple[Score, ...]
    findings: tuple[CheckResult, ...]
    made_with: dict[str, Scalar] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Return row and seed, which identify the run within its table."""
        return self.row, self.seed

    def find_scores(self, condition: str, state: State | None = None, draws: int | None = None) -> list[Score]:
        """Return the scores under a condition: one, or five of a corruption.

        Args:
            condition: one of CONDITIONS.
            state: None for "one" of a random network and "off" of any other.
            draws: noise draws of the attack (EOT); None for the largest number.

        Raises:
            RunError: nothing of this kind is recorded.
        """
        state = state or ("one" if self.noisy else "off")
        found = [score for score in self.scores if (score.condition, score.state) == (condition, state)]
        draws = max((score.attack_draws for score in found), default=0) if draws is None else draws
        found = [score for score in found if score.attack_draws == draws]
        if len(found) != (5 if condition in CORRUPTIONS else 1):
            raise RunError(
                f"{self.row}, seed {self.seed}: no accuracy for {condition}, {state}, EOT-{draws} is recorded"
            )
        return found

    def accuracy(self, condition: str, state: State | None = None, draws: int | None = None) -> float:
        """Return the accuracy under a condition, averaged over severities; arguments as for `find_scores`."""
        found = self.find_scores(condition, state, draws)
        return sum(score.right / score.images for score in found) / len(found)

    def image_interval(
        self, condition: str, state: State | None = None, draws: int | None = None
    ) -> tuple[float, float]:
        """Return the ends of Wilson's 95 % interval of `accuracy`, which reflects the choice of images.

        Severities of a corruption share their images, so the interval of their mean is at most as wide as the mean of
        their intervals, which is returned.
        """
        found = self.find_scores(condition, state, draws)
        return sum(score.low for score in found) / len(found), sum(score.high for score in found) / len(found)

    def image_error(self, condition: str, state: State | None = None, draws: int | None = None) -> float:
        """Return half of `image_interval`."""
        low, high = self.image_interval(condition, state, draws)
        return (high - low) / 2


class TableData(_Record, frozen=True):
    """Data of a table: sizes of the parts, and number and digest of the test images that were scored."""

    name: str
    source: str
    classes: Annotated[int, Meta(ge=2, le=100_000)]
    train: _Images
    validation: _Images
    test: _Images
    test_images: _Images
    digest: str


class TableResult(_Record, frozen=True, tag_field="format", tag="noiseprop table"):
    """Result of a table: settings that all runs share, and the runs."""

    table: str
    protocol: str
    departures: tuple[str, ...]
    data: TableData
    epochs: _Images
    precision: Precision
    judged_in: Precision
    settings: Settings
    recipe: Recipe
    trust_images: dict[str, _Images]
    made_with: dict[str, Scalar]
    runs: tuple[RunResult, ...]

    def __post_init__(self) -> None:
        """Check the runs against each other and against the table."""
        if self.table not in PUBLISHED:
            raise ValueError(f"table {self.table!r} is unknown, expected one of {', '.join(PUBLISHED)}")
        if len({run.key for run in self.runs}) < len(self.runs):
            raise ValueError("a run occurs twice")
        checks = [finding.name for finding in self.runs[0].findings] if self.runs else []
        for run in self.runs:
            if run.row not in PUBLISHED[self.table] or run.row not in self.trust_images:
                raise ValueError(f"it has a run of {run.row!r} with seed {run.seed}, which is not a row of the table")
            if [finding.name for finding in run.findings] != checks:
                raise ValueError(f"{run.row}, seed {run.seed} has other sanity checks than the first run")

    @property
    def rows(self) -> list[str]:
        """Return the rows that have runs, in the order of the paper."""
        present = {run.row for run in self.runs}
        return [row for row in PUBLISHED[self.table] if row in present]

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of all runs."""
        return sorted({run.seed for run in self.runs})

    @property
    def printed(self) -> dict[str, dict[str, float]]:
        """Return the accuracies in the paper by row and condition."""
        return PUBLISHED[self.table]

    def find_runs(self, row: str) -> list[RunResult]:
        """Return the runs of a row, by seed.

        Raises:
            RunError: there are none.
        """
        found = sorted((run for run in self.runs if run.row == row), key=lambda run: run.seed)
        if not found:
            raise RunError(f"the record of {self.table} has no run of {row!r}; run `noiseprop reproduce` again")
        return found

    def has_run(self, job: Job) -> bool:
        """Return whether a job of this table is among its runs."""
        return any(run.key == (job.row.name, job.seed) for run in self.runs)

    def compute_spread(self, row: str, condition: str, state: State | None = None, draws: int | None = None) -> Spread:
        """Return mean and standard deviation over seeds; arguments as for `RunResult.find_scores`."""
        return mean_std([run.accuracy(condition, state, draws) for run in self.find_runs(row)])

    def format_cell(self, row: str, condition: str, state: State | None = None, draws: int | None = None) -> str:
        """Return mean ± standard deviation over seeds, or the accuracy of a single seed ± `image_error`."""
        runs = self.find_runs(row)
        if len(runs) > 1:
            return str(self.compute_spread(row, condition, state, draws))
        return f"{runs[0].accuracy(condition, state, draws):.3f} ± {runs[0].image_error(condition, state, draws):.3f}"


def make_table_result(spec: TableSpec, runs: Sequence[FinishedRun], existing: TableResult | None = None) -> TableResult:
    """Return the result of a table: finished runs, and those of an existing result, which stay as they are."""
    empty = existing or _describe_table(spec, dict(runs[0].evaluation.versions) if runs else {})
    by_key = {run.key: run for run in (*(_summarize_run(run, empty.made_with) for run in runs), *empty.runs)}
    images, present = describe_test_images(spec.first_job)[0], {row for row, _ in by_key}
    order = [row.name for row in TABLES[spec.table]]
    trust_images = {
        row.name: min(spec.make_job(row, 0).settings.trust_images, images)
        for row in TABLES[spec.table]
        if row.name in present
    }
    ordered = sorted(by_key.values(), key=lambda run: (run.seed, order.index(run.row)))
    return msgspec.structs.replace(empty, trust_images=trust_images, runs=tuple(ordered))


def _describe_table(spec: TableSpec, made_with: dict[str, Scalar]) -> TableResult:
    """Return the result of a table without runs."""
    job = spec.first_job
    parts, (images, digest) = load_parts(job), describe_test_images(job)
    data = TableData(
        spec.data,
        remove_folder(parts.test.source),
        len(parts.test.classes),
        len(parts.train),
        len(parts.validation),
        len(parts.test),
        images,
        digest,
    )
    return TableResult(
        spec.table,
        spec.protocol.name,
        tuple(sorted(spec.protocol.departures)),
        data,
        spec.epochs,
        spec.precision,
        spec.judged_in,
        job.settings,
        job.recipe,
        {},
        made_with,
        (),
    )


def remove_folder(source: str) -> str:
    """Return the source of a data set without its folder, which means nothing on another machine.

    Examples:
        >>> remove_folder("Two: 2 images from /data/my files/two.zip, which is not the official archive")
        'Two: 2 images from two.zip, which is not the official archive'
    """
    return re.sub(r"(?<= from )[^,]*/", "", source)


def _summarize_run(run: FinishedRun, made_with: dict[str, Scalar]) -> RunResult:
    versions, epochs = dict(run.evaluation.versions), run.epochs
    sigma = {
        layer.removesuffix(".noise"): SigmaCourse(
            _shorten_text(epoch.sigma[layer].mean for epoch in epochs),
            _shorten_text(epoch.sigma[layer].min for epoch in epochs),
            _shorten_text(epoch.sigma[layer].max for epoch in epochs),
        )
        for layer in epochs[0].sigma
    }
    course = TrainingCourse(
        _shorten_text(epoch.train_loss for epoch in epochs),
        _shorten_text(epoch.train_accuracy for epoch in epochs),
        _shorten_text(epoch.validation_loss for epoch in epochs),
        _shorten_text(epoch.validation_accuracy for epoch in epochs),
        sigma,
        tuple(run.test_accuracy),
    )
    return RunResult(
        run.job.row.name,
        run.job.seed,
        run.evaluation.noisy,
        round(median(epoch.seconds for epoch in epochs), 3),
        course,
        _summarize_scores(run.evaluation),
        tuple(CheckResult(f.name, f.outcome, f.sentence) for f in run.evaluation.findings),
        None if versions == made_with else versions,
    )


def _summarize_scores(evaluation: Evaluation) -> tuple[Score, ...]:
    return tuple(
        Score(*m.key, int(m.correct.sum()), m.correct.size, *_shorten_text((m.interval.low, m.interval.high)))
        for m in evaluation.measurements
    )


def _shorten_text(values: Any) -> tuple[float, ...]:
    """Return numbers rounded to six significant digits."""
    return tuple(float(f"{value:.6g}") for value in values)


def write_table(result: TableResult, path: Path) -> None:
    """Write a result as JSON with a checksum, one line for each run; `path` never holds a partial file.

    Raises:
        RunError: the file cannot be written; an older one stays as it was.
    """
    document = add_checksum(msgspec.to_builtins(result))
    runs = ",\n  ".join(json.dumps(run, allow_nan=False) for run in document.pop("runs"))
    head = json.dumps(document, indent=1, allow_nan=False)[:-2]
    write_aside(path, lambda aside: aside.write_text(f'{head},\n "runs": [\n  {runs}\n ]\n}}\n', encoding="utf-8"))


def read_table(path: Path) -> TableResult:
    """Read what `write_table` wrote.

    Raises:
        RunError: the file does not exist, is too large, damaged or not the result of a table.
    """
    try:
        result = parse_record(read_text(path), TableResult)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); run `noiseprop reproduce` first") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {_NEXT}") from error
    if not result.runs:
        raise RunError(f"{path} is damaged (it has no run); {_NEXT}")
    return result


def read_finished_runs(spec: TableSpec) -> list[FinishedRun]:
    """Return all finished runs of a table, including those of other rows or more seeds than requested."""
    found: list[FinishedRun] = []
    for row in TABLES[spec.table]:
        folders = spec.make_job(row, 0).folder.parent.glob(f"{row.slug}-seed*")
        seeds = sorted(int(number) for folder in folders if (number := folder.name.split("-seed")[1]).isdecimal())
        jobs = [spec.make_job(row, seed) for seed in seeds]
        found += [read_finished(job) for job in jobs if is_finished(job)]
    return sorted(found, key=lambda run: run.job.seed)


def extend_table(path: Path, spec: TableSpec, runs: Sequence[FinishedRun]) -> TableResult:
    """Add finished runs to the results file of a table, which is made if there is none; existing runs stay.

    Returns:
        All known runs of the table; if there are none, no file is written.

    Raises:
        RunError: the file is damaged, holds runs with other settings or data, or cannot be written.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):  # of commands with other --runs
        existing = _read_existing(path, spec)
        result = make_table_result(spec, runs, existing)
        if len(result.runs) > (len(existing.runs) if existing else 0):
            write_table(result, path)
            return result
        return existing or result


def _read_existing(path: Path, spec: TableSpec) -> TableResult | None:
    if not path.exists():
        return None
    existing = read_table(path)
    expected, found = (
        flatten_document(json.loads(msgspec.json.encode(result))) for result in (_describe_table(spec, {}), existing)
    )
    by_row = {f"settings.{name}" for name in EVERYWHERE_LIMITS.get(spec.table, ())}
    skipped = by_row | {"runs", "made_with", "trust_images"}
    skipped |= {"data.source", "recipe.epochs", "recipe.precision"}  # implied by data.digest, epochs and precision
    different = [
        f"{key} is {found.get(key)!r} there and {value!r} now"
        for key, value in expected.items()
        if key not in skipped and found.get(key) != value
    ]
    if different:
        raise RunError(
            f"{path} holds runs with other settings: {', '.join(different)}; use the same or choose another folder "
            "with --out"
        )
    try:
        for run in existing.runs:
            _check_complete(run, spec)
    except (ValueError, RunError) as error:
        raise RunError(f"{path} is damaged ({error}); {_NEXT}") from error
    return existing


def _check_complete(run: RunResult, spec: TableSpec) -> None:
    """Check that a run has all epochs and scores, so that no run is skipped because of a damaged record."""
    job = spec.first_job
    epochs, done = job.recipe.epochs, run.course.epochs
    if not (done == epochs or ("early-stopping" in spec.protocol and done < epochs)):
        raise ValueError(f"{run.row}, seed {run.seed} has {done} of {epochs} epochs")
    if run.row not in {row.name for row in TABLES[spec.table]}:
        raise ValueError(f"it has a run of {run.row!r} with seed {run.seed}")
    for condition in job.settings.conditions:
        run.find_scores(condition)
