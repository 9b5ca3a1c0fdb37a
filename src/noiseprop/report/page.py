"""Self-contained HTML page about finished runs, which loads nothing from elsewhere."""

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
from noiseprop.report.accuracy import MAX_FINDINGS, NAMES, group_doubts, tabulate_accuracies
from noiseprop.report.charts import make_corruption_panels, make_eps_panels, make_sigma_panels, make_training_panel
from noiseprop.report.commands import list_commands_again
from noiseprop.report.network_views import SEVERITY, NetworkView
from noiseprop.report.paired_tests import compare_all_pairs
from noiseprop.report.png import encode_photo, encode_saliency, encode_scale
from noiseprop.report.run_groups import Group, Run
from noiseprop.report.sigma_maps import draw_sigma_maps
from noiseprop.report.svg import FRAME

REPORT_MARK = "<!-- made by `noiseprop report` -->"
_LONGEST = 300  # characters of a text from a file
_MOST_ROWS = 200  # of a run's settings


def write_report(groups: Sequence[Group], looks: Mapping[Path, NetworkView], path: Path) -> None:
    """Write the report atomically.

    Raises:
        RunError: the file cannot be written, or is not a report.
    """
    check_report_path(path)
    text = render_report(groups, looks)
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def check_report_path(path: Path) -> None:
    """Check that a path is free or holds an earlier report.

    Raises:
        RunError: it holds something else.
    """
    if not path.exists():
        return
    ours = False
    if path.is_file():
        with path.open("rb") as file:
            ours = REPORT_MARK.encode() in file.read(200)
    if not ours:
        raise RunError(f"{path} was not written by `noiseprop report` and would be lost; choose another --out")


def render_report(groups: Sequence[Group], looks: Mapping[Path, NetworkView]) -> str:
    """Return the page as text; equal runs give equal text.

    Args:
        groups: from `group_runs`.
        looks: from `view_networks`, for each run of the groups.
    """
    environment = Environment(
        loader=PackageLoader("noiseprop.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": _shorten,
        "p_value": _format_p_value,
        "signed": _format_signed,
        "photo": encode_photo,
    }
    accuracies = tabulate_accuracies(groups)
    script = _read_asset(environment, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        mark=REPORT_MARK,
        style=_read_asset(environment, "report.css"),
        script=script,
        script_digest=digest,
        title=_make_title(groups),
        groups=groups,
        table=accuracies,
        doubts=group_doubts(accuracies.doubts),
        panels={
            "eps": make_eps_panels(groups, looks),
            "corruptions": make_corruption_panels(groups),
            "training": [panel for panel in [make_training_panel(groups)] if panel],
            "sigma": make_sigma_panels(groups),
        },
        maps=[(group.label, draw_sigma_maps(looks[group.runs[0].path].sigmas)) for group in groups],
        scale=encode_scale(),
        examples=[(group.label, group.runs[0].seed, looks[group.runs[0].path]) for group in groups],
        pairs=compare_all_pairs(groups),
        details=[_make_run_detail(group.label, run, looks[run.path]) for group in groups for run in group.runs],
        names=NAMES,
        severity=SEVERITY,
        saliency=encode_saliency,
        size=FRAME,
    )


def _read_asset(environment: Environment, name: str) -> str:
    """Return the text of a style sheet or script of the package."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _make_title(groups: Sequence[Group]) -> str:
    names = list(dict.fromkeys(group.runs[0].model for group in groups))
    if len(", ".join(names)) <= 40 or len(names) == 1:
        return _shorten(", ".join(names))
    return f"{len(names)} networks"


def _make_run_detail(label: str, run: Run, look: NetworkView) -> dict[str, Any]:
    """Return the content of the section about one run."""
    e = run.evaluation
    return {
        "label": label,
        "run": run,
        "commands": list_commands_again(run.settings, run.path) if run.settings else [],
        "settings": _list_settings(msgspec.to_builtins(run.settings) if run.settings else {}),
        "made_with": _list_settings(msgspec.to_builtins(run.made_with) if run.made_with else {}),
        "evaluated": _list_settings(
            {"about": e.about, "settings": asdict(e.settings), "versions": e.versions} if e else {}
        ),
        "findings": e.findings[:MAX_FINDINGS] if e else (),
        "troubles": (*run.troubles, *look.troubles),
    }


def _list_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as rows of a table."""
    return dict(islice(flatten_document(tree).items(), _MOST_ROWS))


def _shorten(value: object) -> str:
    """Return a text from a file, cut to a bounded length."""
    text = json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _format_signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _format_p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
