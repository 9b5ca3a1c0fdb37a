"""A run's folder: config.json says what was asked for, metrics.jsonl what came of it, one line an epoch."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from noiseprop.environment import describe_environment
from noiseprop.errors import RunError
from noiseprop.files.atomic import write_aside, write_json
from noiseprop.files.checksum import add_checksum, verify_checksum
from noiseprop.files.untrusted import parse_json, read_json, read_text
from noiseprop.training.resume import continue_settings

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
STATE = "state.safetensors"
_LOCK = ".lock"
_FORMAT = 1
_MOST_EPOCHS = 100_000


def open_run(run_dir: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write config.json of a new run, or check that the one there was made with the same settings or for fewer epochs.

    Args:
        run_dir: the folder; it may be absent or empty.
        settings: JSON-able; what makes two runs the same run.
        resume: continue a run that exists; start it where there is none yet.

    Raises:
        RunError: the run exists and `resume` is off, the folder holds other things, its settings differ, or it has
            lost its checkpoint.
    """
    asked = json.loads(json.dumps(settings))
    config: dict[str, Any] = {"format": _FORMAT, "settings": asked, "made_with": describe_environment()}
    if refuse_taken(run_dir, resume=resume):
        there = read_config(run_dir)
        made = there.get("made_with") if _has_begun(run_dir) else config["made_with"]
        config = {**there, "settings": continue_settings(run_dir, there["settings"], asked), "made_with": made}
        if config == there:
            return
    _make(run_dir)
    write_json(run_dir / CONFIG, config)


def _has_begun(run_dir: Path) -> bool:
    """Whether a run has a checkpoint to go on from.

    Raises:
        RunError: it has none any more: beginning again would replace what was finished.
    """
    if (run_dir / STATE).exists():
        return True
    if (run_dir / MODEL).exists() or len(read_metrics(run_dir)) > 1:  # a kill leaves one line and no checkpoint
        raise RunError(f"{run_dir / STATE} is missing, without which the run cannot go on; {again(run_dir)}")
    return False


@contextmanager
def held(run_dir: Path, *, resume: bool) -> Generator[None]:
    """Let no other process train or judge in a run's folder meanwhile; however this one ends, the system lets go.

    Raises:
        RunError: another process is at work there; or as for `refuse_taken`.
    """
    refuse_taken(run_dir, resume=resume)  # nothing is put into a folder of other things, not even a lock
    _make(run_dir)
    lock = FileLock(run_dir / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{run_dir}: another process is at work there; wait for it or stop it") from error
    except OSError as error:
        raise RunError(f"{run_dir}: cannot be written to ({error.strerror or error}); check its rights") from error
    try:
        yield
    finally:
        lock.release()


def refuse_taken(run_dir: Path, *, resume: bool) -> bool:
    """Whether the folder holds a run.

    Raises:
        RunError: it holds one and `resume` is off, or it holds other things, or it is no folder.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file, not a run folder; choose another folder")
    if not (run_dir.is_dir() and any(map(_counts, run_dir.iterdir()))):
        return False
    if not (run_dir / CONFIG).exists():
        raise RunError(f"{run_dir} holds other things than a run (no {CONFIG}); choose another folder")
    if not resume:
        raise RunError(f"{run_dir} holds a run already; continue it with --resume or choose another folder")
    return True


def read_config(run_dir: Path) -> dict[str, Any]:
    """The content of config.json: "settings" as given to `open_run`, "made_with" and "format".

    Args:
        run_dir: a folder that `train` wrote.

    Returns:
        What makes the run this run, the versions and the machine that it began with, and the file's format.

    Raises:
        RunError: there is no such folder or file, or it is damaged.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise RunError(f"{run_dir} is not a run folder: it has no {CONFIG}; give a folder that `noiseprop train` wrote")
    try:
        config = read_json(path)
        config = verify_checksum(config) if isinstance(config, dict) else config
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {again(run_dir)}") from error
    if not (isinstance(config, dict) and config.get("format") == _FORMAT and isinstance(config.get("settings"), dict)):
        raise RunError(f"{path} is not the {CONFIG} of a run of format {_FORMAT}; was it made by another version?")
    return config


def append_metrics(run_dir: Path, line: Mapping[str, Any]) -> None:
    """Add one epoch's line to metrics.jsonl and wait until it is on the disk."""
    text = _line(line)
    try:
        with (run_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"{run_dir / METRICS} could not be written ({error.strerror or error}); free space, then --resume"
        ) from error


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The epochs of metrics.jsonl in order; a last line that a kill left unfinished is not among them.

    Args:
        run_dir: a folder that `train` wrote.

    Returns:
        One dictionary per epoch, for `Epoch.from_json`; none where there is no such file.

    Raises:
        RunError: a line is damaged, or an epoch is missing.
    """
    path = run_dir / METRICS
    if not path.exists():
        return []
    try:
        whole, _, _torn = read_text(path).rpartition("\n")
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {again(run_dir)}") from error
    rows = whole.splitlines()
    if len(rows) > _MOST_EPOCHS:
        raise RunError(f"{path} has {len(rows):,} lines, expected at most {_MOST_EPOCHS:,}; {again(run_dir)}")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(rows, start=1):
        try:
            line = parse_json(text)
            line = verify_checksum(line) if isinstance(line, dict) else line
        except ValueError as error:
            raise RunError(f"{path}, line {number} is damaged ({error}); {again(run_dir)}") from error
        if not isinstance(line, dict) or line.get("epoch") != number:
            raise RunError(f"{path}, line {number} should be epoch {number}; {again(run_dir)}")
        lines.append(line)
    return lines


def keep_metrics(run_dir: Path, epochs: int) -> list[dict[str, Any]]:
    """Cut metrics.jsonl down to the epochs that a checkpoint holds, and return them.

    Raises:
        RunError: it holds fewer epochs than the checkpoint.
    """
    lines = read_metrics(run_dir)
    if len(lines) < epochs:
        message = f"{run_dir / METRICS} has {len(lines)} epochs, the checkpoint {epochs}; {again(run_dir)}"
        raise RunError(message)
    text = "".join(map(_line, lines[:epochs]))
    write_aside(run_dir / METRICS, lambda aside: aside.write_text(text, encoding="utf-8"))
    return lines[:epochs]


def _line(epoch: Mapping[str, Any]) -> str:
    return json.dumps(add_checksum(epoch), allow_nan=False) + "\n"


def again(run_dir: Path) -> str:
    """What to do about a damaged run."""
    return f"put back an intact one, or move {run_dir} away and train again"


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run_dir} could not be made ({error.strerror or error}); choose another folder") from error


def _counts(path: Path) -> bool:
    """Whether a file makes a folder taken; what a kill left of the first write, and the lock, do not."""
    return path.name != _LOCK and not (path.name.startswith(".") and path.name.endswith(".tmp"))


def _unreadable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} could not be read ({error.strerror or error}); check its rights")
