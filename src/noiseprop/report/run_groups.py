"""Run folders of a report: their content, the reasons for missing parts, and groups of runs that differ in the seed."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from noiseprop.environment import Environment
from noiseprop.errors import RunError
from noiseprop.evaluation.results import Evaluation
from noiseprop.evaluation.serialization import read_evaluation
from noiseprop.runs.trained_model import read_run_settings
from noiseprop.training import Epoch, read_config, read_metrics
from noiseprop.training.resume import flatten_settings
from noiseprop.training.run_config import RunSettings
from noiseprop.training.run_folder import CONFIG

_SEEDS = ("seed", "model.seed")
_UNSAID = ("data.digest", "data.images")  # settings that labels omit

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """Content of one run folder.

    Attributes:
        path: the folder.
        settings: settings of the training, or None if they cannot be read.
        made_with: versions and machine of the training.
        epochs: content of metrics.jsonl.
        evaluation: content of evaluation.json, or None if it cannot be read.
        troubles: a sentence for each part that could not be read.
    """

    path: Path
    settings: RunSettings | None
    made_with: Environment | None
    epochs: tuple[Epoch, ...]
    evaluation: Evaluation | None
    troubles: tuple[str, ...]

    @property
    def model(self) -> str:
        """Return the name of the network, or that of the folder if the settings cannot be read."""
        return self.settings.model.name if self.settings else self.path.name

    @property
    def seed(self) -> str:
        """Return the seed of the training as text, or the name of the folder if it is unknown."""
        return f"seed {self.settings.seed}" if self.settings else self.path.name


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds, with a label that is unique in the report."""

    label: str
    runs: tuple[Run, ...]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return the evaluations of the runs that have one."""
        return tuple(run.evaluation for run in self.runs if run.evaluation)


def read_run(path: Path) -> Run:
    """Read a run folder; a damaged file becomes a sentence in `troubles`.

    Raises:
        RunError: it is not a run folder.
    """
    if not (path / CONFIG).is_file():
        read_config(path)  # raises the error
    troubles: list[str] = []

    def attempt(reading: Callable[[], _T]) -> _T | None:
        try:
            return reading()
        except RunError as error:
            troubles.append(str(error))
            return None

    settings = attempt(lambda: read_run_settings(path))
    made_with = read_config(path).made_with if settings else None
    epochs = attempt(lambda: tuple(read_metrics(path)))
    evaluation = None
    if (path / "evaluation.json").exists():
        evaluation = attempt(lambda: read_evaluation(path / "evaluation.json"))
    else:
        troubles.append(f"{path} was not evaluated; run `noiseprop evaluate {path}` for its figures")
    return Run(path, settings, made_with, epochs or (), evaluation, tuple(troubles))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by all settings except their seeds, in order.

    Runs that were evaluated on other images or by other attacks form separate groups, because their means differ.
    """
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[_get_group_key(run)].append(run)
    groups = list(by_key.values())
    return [Group(label, tuple(group)) for label, group in zip(_make_labels(groups), groups, strict=True)]


def _get_group_key(run: Run) -> str:
    if run.settings is None:
        return str(run.path)
    e = run.evaluation
    identity = None if e is None else (asdict(e.settings), e.digest, e.noisy, e.about.get("surrogate"))
    return json.dumps([_get_settings_without_seeds(run), identity], sort_keys=True, default=str)


def _get_settings_without_seeds(run: Run) -> dict[str, Any]:
    """Return the settings of a run without its seeds, flattened."""
    settings = flatten_settings(run.settings) if run.settings else {}
    return {key: value for key, value in settings.items() if key not in _SEEDS}


def _make_labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return labels: the name of the network, and the settings in which it differs from others of that name."""
    labels: list[str] = []
    for group in groups:
        namesakes = [_get_settings_without_seeds(other[0]) for other in groups if other[0].model == group[0].model]
        own = _get_settings_without_seeds(group[0])
        differing = [
            key for key in own if not key.startswith(_UNSAID) and any(own[key] != it.get(key) for it in namesakes)
        ]
        told = [f"{key.removesuffix('.name').rpartition('.')[2]} {own[key]}" for key in differing]
        labels.append(" · ".join([group[0].model, *told]))
    for i, label in enumerate(labels):
        if label in labels[:i]:
            group = groups[i]
            evaluation = group[0].evaluation
            labels[i] = f"{label} · {'evaluated differently' if evaluation else 'not evaluated'} ({group[0].path.name})"
    return labels
