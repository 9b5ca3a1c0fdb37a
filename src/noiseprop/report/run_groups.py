"""Run folders as a report reads them: what is there, what is not and why, and which runs differ in their seed alone."""

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
_UNSAID = ("data.digest", "data.images")  # settings that no label tells

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        settings: of the training; None where they cannot be read.
        made_with: versions and machine of the training.
        epochs: what metrics.jsonl tells.
        evaluation: what evaluation.json tells; None where there is none that can be read.
        troubles: a sentence for each thing that could not be read.
    """

    path: Path
    settings: RunSettings | None
    made_with: Environment | None
    epochs: tuple[Epoch, ...]
    evaluation: Evaluation | None
    troubles: tuple[str, ...]

    @property
    def model(self) -> str:
        """The network's name, or the folder's where the settings cannot be read."""
        return self.settings.model.name if self.settings else self.path.name

    @property
    def seed(self) -> str:
        """The seed of the training, as text; the folder's name where it is not known."""
        return f"seed {self.settings.seed}" if self.settings else self.path.name


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone, under a label that tells them from the other groups of a report."""

    label: str
    runs: tuple[Run, ...]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Those that there are."""
        return tuple(run.evaluation for run in self.runs if run.evaluation)


def read_run(path: Path) -> Run:
    """What a run folder holds; damage to one of its files becomes a sentence.

    Raises:
        RunError: it is no run folder at all.
    """
    if not (path / CONFIG).is_file():
        read_config(path)  # says what is wrong
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


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by all that decides them but their seeds, in the order in which they come.

    Runs that were judged on other images or by other attacks are groups of their own: no mean is taken over them.
    """
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[_key(run)].append(run)
    groups = list(by_key.values())
    return [Group(label, tuple(group)) for label, group in zip(_labels(groups), groups, strict=True)]


def _key(run: Run) -> str:
    if run.settings is None:
        return str(run.path)
    e = run.evaluation
    judged = None if e is None else (asdict(e.settings), e.digest, e.noisy, e.about.get("surrogate"))
    return json.dumps([_told(run), judged], sort_keys=True, default=str)


def _told(run: Run) -> dict[str, Any]:
    """A run's settings, flat, without its seeds."""
    settings = flatten_settings(run.settings) if run.settings else {}
    return {key: value for key, value in settings.items() if key not in _SEEDS}


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A network's name, and of the settings those that tell it from others of that name."""
    labels: list[str] = []
    for group in groups:
        namesakes = [_told(other[0]) for other in groups if other[0].model == group[0].model]
        own = _told(group[0])
        differing = [
            key for key in own if not key.startswith(_UNSAID) and any(own[key] != it.get(key) for it in namesakes)
        ]
        told = [f"{key.removesuffix('.name').rpartition('.')[2]} {own[key]}" for key in differing]
        labels.append(" · ".join([group[0].model, *told]))
    for i, label in enumerate(labels):
        if label in labels[:i]:
            group = groups[i]
            judged = group[0].evaluation
            labels[i] = f"{label} · {'judged otherwise' if judged else 'not evaluated'} ({group[0].path.name})"
    return labels
