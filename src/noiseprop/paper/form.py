"""The form of a results file: what must be in it, and of which type, before anything is made of it."""

import re
from typing import Any

import msgspec

from noiseprop.evaluation.results import OUTCOMES
from noiseprop.paper.protocol import RESNETS
from noiseprop.paper.published import PUBLISHED
from noiseprop.training.recipes import Recipe

NUMBER = (int, float)
_SCALAR = (str, int, float, bool, type(None))
_LENGTHS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_LARGEST = 1e12  # of losses and sigmas; the squares of far larger ones would overflow
_ROUNDED = 1e-5  # shares are kept with six digits
_FIGURE = re.compile("[a-z0-9_-]{1,40}/(off|one|vote)/[0-9]{1,9}/[0-5]")  # condition/state/attack draws/severity

_RESNETS = ("recipe", "source", "images", "judged_in", "trust_images")
"""Of a record of a table of ResNets, which has a part of the page to itself."""

RECORD = {
    "table": str,
    "protocol": str,
    "departures": [str],
    "data": {"name": str, "test_images": int, "digest?": str},
    "epochs": int,
    "precision": str,
    "judged_in?": str,
    "seeds": [int],
    "settings": {"attack_draws": [int], "attack_images": int},
    "made_with": {"*": _SCALAR},
    "recipe?": {"*": _SCALAR},
    "source?": str,
    "images?": {"train": int, "validation": int, "test": int},
    "classes?": int,
    "trust_images?": {"*": int},
    "runs": [
        {
            "row": str,
            "seed": int,
            "noisy": bool,
            "seconds_per_epoch": NUMBER,
            "course": {
                **{name: [NUMBER] for name in _LENGTHS},
                "test_accuracy": [NUMBER],
                "sigma": {"*": {"mean": [NUMBER], "min": [NUMBER], "max": [NUMBER]}},
            },
            "figures": {"*": [NUMBER]},
            "findings": [{"name": str, "outcome": str, "sentence": str}],
            "made_with?": {"*": _SCALAR},
        }
    ],
}
"""Of a record of a reproduced table, as `check` reads it."""

FIGURE_4 = {
    "protocol": str,
    "departures": [str],
    "recipe": {"*": _SCALAR},
    "seed": int,
    "networks": [str],
    **dict.fromkeys(("test_images", "right_by_all", "samples", "draws", "vote_draws"), int),
    "panel_has_boxes": bool,
    "sigma": NUMBER,
    "source": str,
    "box?": [NUMBER],
    "inside?": {"*": [(*NUMBER, type(None))]},  # null of a blank map
    "right?": [bool],
}
"""Of the figures of Figure 4."""


def check(value: Any, form: Any, where: str = "it") -> None:
    """Compare a value with a form.

    Args:
        value: what JSON gave.
        form: a type or several; `[form]` for a list of any length; `{name: form}` for an object with at least these
            fields, those with a `?` perhaps; `{"*": form}` for an object with any fields.
        where: names the value in the error.

    Raises:
        ValueError: it has another form.

    >>> check({"seeds": [0, "1"]}, {"seeds": [int], "source?": str})
    Traceback (most recent call last):
    ValueError: it has seeds[1] '1', expected int
    """
    if isinstance(form, list):
        _is(value, list, where)
        for number, item in enumerate(value):
            check(item, form[0], f"{where}[{number}]")
    elif isinstance(form, dict):
        _is(value, dict, where)
        fields = dict.fromkeys(value, form["*"]) if "*" in form else form
        for field, inner in fields.items():
            name = field if "*" in form else field.removesuffix("?")
            if name in value:
                check(value[name], inner, f"it has {name}" if where == "it" else f"{where}.{name}")
            elif name == field:
                raise ValueError(f"{where if where == 'it' else where.removeprefix('it has ')} does not tell {name}")
    else:
        _is(value, form, where)


def check_record(record: Any) -> None:
    """Check all of a record that tables, figures and pages are made of.

    Raises:
        ValueError: something is missing, of another type, or at odds with the rest.
    """
    check(record, RECORD)
    if record["table"] not in PUBLISHED:
        raise ValueError(f"it is of {record['table']!r}, expected one of {', '.join(PUBLISHED)}")
    draws = record["settings"]["attack_draws"]
    if not draws or min(draws) < 1:
        raise ValueError(f"attack_draws are {draws!r}, expected numbers from 1 up")
    if record["table"] in RESNETS and (lacks := [name for name in _RESNETS if name not in record]):
        raise ValueError(f"it does not tell {', '.join(lacks)}")
    if "recipe" in record:
        msgspec.convert(record["recipe"], Recipe)
        check(record, {"images": dict, "source": str, "judged_in": str})
    keys = [(run["row"], run["seed"]) for run in record["runs"]]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError("a run is there twice" if keys else "it has no run")
    for run in record["runs"]:
        _check_run(run, [finding["name"] for finding in record["runs"][0]["findings"]])


def check_figure_4(record: Any) -> None:
    """Check all that the figures of Figure 4 are shown from.

    Raises:
        ValueError: something is missing, of another type, or at odds with the rest.
    """
    check(record, FIGURE_4)
    msgspec.convert(record["recipe"], Recipe)
    if "inside" in record:
        check(record, {"box": list, "right": list})
        if list(record["inside"]) != record["networks"]:
            raise ValueError("it has shares of other networks than it names")
        lengths = {len(values) for values in (record["box"], record["right"], *record["inside"].values())}
        if not record["inside"] or len(lengths) > 1 or not max(lengths):
            raise ValueError("it has shares of different numbers of images, or of none")
        if not sum(record["right"]) <= record["right_by_all"] <= record["test_images"]:
            raise ValueError("it has more images right by all than there are")
        shares = [share for values in (record["box"], *record["inside"].values()) for share in values]
        if not all(share is None or 0 <= share <= 1 for share in shares):
            raise ValueError("it has shares below 0 or above 1")


def _check_run(run: Any, checks: list[str]) -> None:
    name, course = f"{run['row']}, seed {run['seed']}", run["course"]
    sigma = [layer[key] for layer in course["sigma"].values() for key in ("mean", "min", "max")]
    courses = [course[key] for key in _LENGTHS] + sigma
    if any(abs(value) > _LARGEST for values in (*courses, course["test_accuracy"]) for value in values):
        raise ValueError(f"{name} has a course beyond {_LARGEST:g}, where no training goes on")
    lengths = set(map(len, courses))
    if len(lengths) > 1 or not max(lengths) or len(course["test_accuracy"]) not in (0, *lengths):
        raise ValueError(f"{name} has courses of different lengths or of none")
    for key, figure in run["figures"].items():
        if not _FIGURE.fullmatch(key) or len(figure) != 4:
            raise ValueError(f"{name} has {key!r} among its figures")
        right, n, low, high = figure
        if not (n >= 1 and 0 <= low <= right / n + _ROUNDED and right / n <= high + _ROUNDED and low < high <= 1):
            raise ValueError(f"{name}: {key} is {figure}, no share of its images with an interval")
    found = [finding["name"] for finding in run["findings"]]
    if found != checks or any(finding["outcome"] not in OUTCOMES for finding in run["findings"]):
        raise ValueError(
            f"{name} has the findings {', '.join(found)}, expected {', '.join(checks)}, each with its outcome"
        )


def _is(value: Any, kinds: Any, where: str) -> None:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if type(value) not in kinds:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{where} {repr(value)[:80]}, expected {names}")
