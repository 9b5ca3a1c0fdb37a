"""One self-contained HTML file out of finished runs: nothing in it asks for anything outside of it."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from noiseprop.errors import RunError
from noiseprop.files.atomic import write_aside
from noiseprop.files.records import flatten_document
from noiseprop.report.accuracy import MOST_FINDINGS, NAMES, by_condition, table
from noiseprop.report.charts import corruption_panels, eps_panels, sigma_panels, training_panel
from noiseprop.report.commands import commands
from noiseprop.report.network_views import SEVERITY, Look
from noiseprop.report.paired_tests import pairs
from noiseprop.report.png import photo, saliency, scale
from noiseprop.report.run_groups import Group, Run
from noiseprop.report.sigma_maps import sigma_maps
from noiseprop.report.svg import FRAME

MARK = "<!-- made by `noiseprop report` -->"
_LONGEST = 300  # characters shown of a text that a file tells
_MOST_ROWS = 200  # of a run's settings


def write_report(groups: Sequence[Group], looks: Mapping[Path, Look], path: Path) -> None:
    """Write the report, aside and then renamed.

    Raises:
        RunError: the file cannot be written, or holds something else than a report.
    """
    refuse_to_lose(path)
    text = report(groups, looks)
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def refuse_to_lose(path: Path) -> None:
    """Refuse a path where something lies that no report wrote.

    Raises:
        RunError: there is such a thing.
    """
    if not path.exists():
        return
    ours = False
    if path.is_file():
        with path.open("rb") as file:
            ours = MARK.encode() in file.read(200)
    if not ours:
        raise RunError(f"{path} was not written by `noiseprop report` and would be lost; choose another --out")


def report(groups: Sequence[Group], looks: Mapping[Path, Look]) -> str:
    """The page as text; equal runs give equal text.

    Args:
        groups: from `runs.grouped`.
        looks: from `look.look_at`, for each run of the groups.
    """
    environment = Environment(
        loader=PackageLoader("noiseprop.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": _short, "p_value": _p_value, "signed": _signed, "photo": photo}
    accuracies = table(groups)
    script = _file(environment, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        mark=MARK,
        style=_file(environment, "report.css"),
        script=script,
        script_digest=digest,
        title=_title(groups),
        groups=groups,
        table=accuracies,
        doubts=by_condition(accuracies.doubts),
        panels={
            "eps": eps_panels(groups, looks),
            "corruptions": corruption_panels(groups),
            "training": [panel for panel in [training_panel(groups)] if panel],
            "sigma": sigma_panels(groups),
        },
        maps=[(group.label, sigma_maps(looks[group.runs[0].path].sigmas)) for group in groups],
        scale=scale(),
        examples=[(group.label, group.runs[0].seed, looks[group.runs[0].path]) for group in groups],
        pairs=pairs(groups),
        details=[_detail(group.label, run, looks[run.path]) for group in groups for run in group.runs],
        names=NAMES,
        severity=SEVERITY,
        saliency=saliency,
        size=FRAME,
    )


def _file(environment: Environment, name: str) -> str:
    """The text of a style sheet or script of ours, as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _title(groups: Sequence[Group]) -> str:
    names = list(dict.fromkeys(group.runs[0].model for group in groups))
    if len(", ".join(names)) <= 40 or len(names) == 1:
        return _short(", ".join(names))
    return f"{len(names)} networks"


def _detail(label: str, run: Run, look: Look) -> dict[str, Any]:
    """What the section on one run shows."""
    e = run.evaluation
    return {
        "label": label,
        "run": run,
        "commands": commands(run.settings, run.path) if run.settings else [],
        "settings": _rows(msgspec.to_builtins(run.settings) if run.settings else {}),
        "made_with": _rows(msgspec.to_builtins(run.made_with) if run.made_with else {}),
        "judged": _rows({"about": e.about, "settings": asdict(e.settings), "versions": e.versions} if e else {}),
        "findings": e.findings[:MOST_FINDINGS] if e else (),
        "troubles": (*run.troubles, *look.troubles),
    }


def _rows(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as rows of a table."""
    return dict(islice(flatten_document(tree).items(), _MOST_ROWS))


def _short(value: object) -> str:
    """A text from a file, cut where it is longer than any of ours."""
    text = json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
