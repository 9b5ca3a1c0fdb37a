"""What may differ between the settings of a run and those that it is asked to go on with: more epochs, no more.

Data of the user's own may lie elsewhere by now; their digest tells whether they are the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseprop.errors import RunError

_EPOCHS, _DIGEST, _PATH = "recipe.epochs", "data.digest", "data.path"


def continued(run_dir: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to go on with: those of the run, with as many epochs as are asked for, and where its data lie now.

    Args:
        run_dir: the run's folder, for the error.
        there: the settings in its config.json.
        asked: those of now, as JSON would give them back.

    Raises:
        RunError: the data are others, or a setting is; fewer epochs are asked for than the run was to have; or more,
            and its learning rate was planned for the old number.
    """
    old, new = flattened(there), flattened(asked)
    if _DIGEST not in old:
        new.pop(_DIGEST, None)  # written by a version that did not record it
    old.pop(_PATH, None)
    moved = {"data": {**there["data"], "path": path}} if (path := new.pop(_PATH, None)) else {}
    different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if different == [_DIGEST]:
        raise other_data(run_dir, str(old.get("data.name")))
    others = [key for key in different if key != _EPOCHS]
    if others:
        changes = ", ".join(f"{key} = {old.get(key)!r} there and {new.get(key)!r} now" for key in others)
        raise RunError(f"{run_dir} was made with other settings: {changes}; use the same or choose another folder")
    if different:
        _check_more(run_dir, old, old.get(_EPOCHS), new.get(_EPOCHS))
        return {**there, **moved, "recipe": {**there["recipe"], "epochs": new[_EPOCHS]}}
    return {**there, **moved}


def other_data(run_dir: Path, name: str) -> RunError:
    """The error that a run was trained on other images or labels than those at hand."""
    return RunError(
        f"{run_dir} was trained on other data: the images or labels of this {name} are not those it was trained on; "
        "give the folder of the same files with --data-dir, or --data if they are your own"
    )


def _check_more(run_dir: Path, old: Mapping[str, Any], planned: object, asked: object) -> None:
    if not (isinstance(planned, int) and isinstance(asked, int) and asked > planned):
        raise RunError(f"{run_dir} was made for {planned} epochs, {asked} are asked for; give as many or more")
    if old.get("recipe.schedule") == "one-cycle":
        raise RunError(
            f"{run_dir} cannot go on to {asked} epochs: its one-cycle learning rate was planned for {planned} and has "
            "ended with them; train in another folder"
        )


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
