"""Rules of resuming a run: only more epochs and another folder of the same data are allowed to differ."""

import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from noiseprop.distributed import get_world
from noiseprop.environment import Environment, count_cores, describe_environment
from noiseprop.errors import NoisepropWarning, RunError
from noiseprop.files.records import flatten_document
from noiseprop.training.run_config import RunSettings


def continue_settings(run_dir: Path, recorded: RunSettings, requested: RunSettings) -> RunSettings:
    """Return the settings of a resumed run: the recorded ones with the requested epochs and path of the data.

    Args:
        run_dir: run folder, for error messages.
        recorded: settings in its config.json.
        requested: settings of this call.

    Raises:
        RunError: the data or another setting differ; the run was planned for more epochs than requested, or for fewer
            and its learning rate was planned for them.
    """
    recorded = msgspec.structs.replace(recorded, data=msgspec.structs.replace(recorded.data, path=requested.data.path))
    recipe = replace(requested.recipe, epochs=recorded.recipe.epochs)
    differences = list_differences(recorded, msgspec.structs.replace(requested, recipe=recipe))
    if [*differences] == ["data.digest"]:
        raise make_other_data_error(run_dir, recorded.data.name)
    if differences:
        changes = ", ".join(f"{name} = {old!r} there and {new!r} now" for name, (old, new) in differences.items())
        raise RunError(f"{run_dir} was made with other settings: {changes}; use the same or choose another folder")
    if requested.recipe.epochs != recorded.recipe.epochs:
        _check_more_epochs(run_dir, recorded, requested.recipe.epochs)
    return msgspec.structs.replace(recorded, recipe=requested.recipe)


def list_differences(recorded: RunSettings, requested: RunSettings) -> dict[str, tuple[object, object]]:
    """Return both values of each setting that differs, by dotted name."""
    old, new = flatten_settings(recorded), flatten_settings(requested)
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return {name: (old.get(name), new.get(name)) for name in names}


def flatten_settings(settings: RunSettings) -> dict[str, object]:
    """Return the settings by dotted names, such as "recipe.epochs"."""
    return flatten_document(msgspec.json.decode(msgspec.json.encode(settings)))


def make_other_data_error(run_dir: Path, name: str) -> RunError:
    """Return the error for a run that was trained on other images or labels than those given."""
    return RunError(
        f"{run_dir} was trained on other data: the images or labels of this {name} are not those it was trained on; "
        "give the folder of the same files with --data-dir, or --data for user data"
    )


def choose_resume_threads(run_dir: Path, begun: Environment) -> int:
    """Return the number of threads of a resumed run: that of its start, which decides its bits, if there are cores.

    Warns:
        NoisepropWarning: the bits of the resumed run will differ, because torch, numba, noiseprop, the processor, the
            number of processes or the possible number of threads differ.
    """
    world = get_world()
    here, threads = describe_environment(processes=world.size), begun.threads
    changes = [
        f"{name} {old} (here {new})"
        for name, old, new in (
            ("torch", begun.torch, here.torch),
            ("numba", begun.numba, here.numba),
            ("noiseprop", begun.noiseprop, here.noiseprop),
            ("processor", begun.processor, here.processor),
        )
        if old != new
    ]
    if threads > count_cores() and threads != torch.get_num_threads():
        changes.append(f"{threads} threads (cores here: {count_cores()})")
        threads = torch.get_num_threads()
    if begun.processes != here.processes:
        changes.append(f"{begun.processes} processes (here {here.processes})")
    if changes and world.is_first:
        sentence = f"{run_dir} resumes, but not bit-identically: it began with {', '.join(changes)}"
        warnings.warn(sentence, NoisepropWarning, stacklevel=4)
    return threads


def _check_more_epochs(run_dir: Path, recorded: RunSettings, requested: int) -> None:
    planned = recorded.recipe.epochs
    if requested < planned:
        raise RunError(f"{run_dir} was planned for {planned} epochs, got {requested}; request at least {planned}")
    if recorded.recipe.schedule == "one-cycle":
        raise RunError(
            f"{run_dir} cannot resume for {requested} epochs: its one-cycle learning rate was planned for {planned} "
            "and has ended with them; train in another folder"
        )
