"""Run folder: config.json holds the settings of a training, metrics.jsonl its measurements, one line per epoch."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from noiseprop.environment import describe_environment
from noiseprop.errors import RunError
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import verify_checksum
from noiseprop.files.records import convert_record, format_record, parse_record, write_record
from noiseprop.files.untrusted import parse_json, read_text
from noiseprop.training.metrics import Epoch
from noiseprop.training.resume import continue_settings
from noiseprop.training.run_config import RUN_VERSION, RunConfig, RunSettings

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
STATE = "state.safetensors"
_LOCK = ".lock"
_MAX_EPOCHS = 100_000


def open_run(run_dir: Path, settings: RunSettings, *, resume: bool, processes: int = 1) -> RunConfig:
    """Write config.json of a new run, or check that the recorded settings allow the run to resume.

    Args:
        run_dir: run folder; it may be absent or empty.
        settings: settings of this call.
        resume: resume an existing run; start it if there is none yet.
        processes: processes that train together.

    Returns:
        The configuration of the run, as config.json holds it now.

    Raises:
        RunError: the run exists and `resume` is off, the folder holds other files, the settings differ, or the
            checkpoint is missing.
    """
    config = RunConfig("noiseprop run", RUN_VERSION, settings, describe_environment(processes=processes))
    if check_run_folder(run_dir, resume=resume):
        recorded = read_config(run_dir)
        made_with = recorded.made_with if _has_checkpoint(run_dir) else config.made_with
        settings = continue_settings(run_dir, recorded.settings, settings)
        config = msgspec.structs.replace(recorded, settings=settings, made_with=made_with)
        if config == recorded:
            return config
    _make_run_folder(run_dir)
    write_record(run_dir / CONFIG, config)
    return config


def _has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run has a checkpoint to resume from.

    Raises:
        RunError: the checkpoint was lost, so that a new start would replace finished epochs.
    """
    if (run_dir / STATE).exists():
        return True
    if (run_dir / MODEL).exists() or len(read_metrics(run_dir)) > 1:  # a kill leaves one line and no checkpoint
        raise RunError(f"{run_dir / STATE} is missing, so the run cannot resume; {suggest_retraining(run_dir)}")
    return False


@contextmanager
def lock_run(run_dir: Path, *, resume: bool) -> Generator[None]:
    """Keep other processes from training or evaluating in a run folder; the system releases the lock of a dead process.

    Raises:
        RunError: another process works there; or as for `check_run_folder`.
    """
    check_run_folder(run_dir, resume=resume)  # a folder of other files gets no lock
    _make_run_folder(run_dir)
    lock = FileLock(run_dir / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{run_dir}: another process is at work there; wait for it or stop it") from error
    except OSError as error:
        raise RunError(f"{run_dir}: cannot be written to ({error.strerror or error}); check its permissions") from error
    try:
        yield
    finally:
        lock.release()


def check_run_folder(run_dir: Path, *, resume: bool) -> bool:
    """Return whether a folder holds a run.

    Raises:
        RunError: it holds a run and `resume` is off, it holds other files, or it is not a folder.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file, not a run folder; choose another folder")
    if not (run_dir.is_dir() and any(map(_counts_as_content, run_dir.iterdir()))):
        return False
    if not (run_dir / CONFIG).exists():
        raise RunError(f"{run_dir} holds other files than a run (no {CONFIG}); choose another folder")
    if not resume:
        raise RunError(f"{run_dir} holds a run already; continue it with --resume or choose another folder")
    return True


def read_config(run_dir: Path) -> RunConfig:
    """Return the content of config.json.

    Args:
        run_dir: folder that `train` wrote.

    Returns:
        Settings of the run, and the environment in which it started.

    Raises:
        RunError: the folder or the file is missing or damaged.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise RunError(f"{run_dir} is not a run folder: it has no {CONFIG}; give a folder that `noiseprop train` wrote")
    try:
        return _parse_config(read_text(path))
    except OSError as error:
        raise _make_read_error(path, error) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {suggest_retraining(run_dir)}") from error


def _parse_config(text: str) -> RunConfig:
    document = parse_json(text)
    if not (isinstance(document, dict) and "settings" in document):
        raise ValueError("not the configuration of a run")
    content = verify_checksum(document)
    config = convert_record(content, RunConfig)
    if msgspec.json.decode(msgspec.json.encode(config)) != content:  # dataclasses accept both
        raise ValueError("it lacks fields or has unknown ones")
    return config


def append_epoch(run_dir: Path, epoch: Epoch) -> None:
    """Append the line of an epoch to metrics.jsonl and wait until it is on the disk."""
    text = format_record(epoch) + "\n"
    try:
        with (run_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"{run_dir / METRICS} could not be written ({error.strerror or error}); free space, then --resume"
        ) from error


def read_metrics(run_dir: Path) -> list[Epoch]:
    """Return the epochs of metrics.jsonl in order, without a last line that a kill left incomplete.

    Args:
        run_dir: folder that `train` wrote.

    Returns:
        Epochs; none if the file does not exist.

    Raises:
        RunError: a line is damaged, or an epoch is missing.
    """
    path = run_dir / METRICS
    if not path.exists():
        return []
    try:
        whole, _, _ = read_text(path).rpartition("\n")
    except OSError as error:
        raise _make_read_error(path, error) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {suggest_retraining(run_dir)}") from error
    lines = whole.splitlines()
    if len(lines) > _MAX_EPOCHS:
        raise RunError(
            f"{path} has {len(lines):,} lines, expected at most {_MAX_EPOCHS:,}; {suggest_retraining(run_dir)}"
        )
    epochs: list[Epoch] = []
    for number, text in enumerate(lines, start=1):
        try:
            epoch = parse_record(text, Epoch)
        except ValueError as error:
            raise RunError(f"{path}, line {number} is damaged ({error}); {suggest_retraining(run_dir)}") from error
        if epoch.epoch != number:
            raise RunError(f"{path}, line {number} should be epoch {number}; {suggest_retraining(run_dir)}")
        epochs.append(epoch)
    return epochs


def truncate_metrics(run_dir: Path, count: int) -> list[Epoch]:
    """Truncate metrics.jsonl to the epochs of a checkpoint, and return them.

    Raises:
        RunError: the file has fewer epochs than the checkpoint.
    """
    epochs = read_metrics(run_dir)
    if len(epochs) < count:
        message = f"{run_dir / METRICS} has {len(epochs)} epochs, the checkpoint {count}; {suggest_retraining(run_dir)}"
        raise RunError(message)
    text = "".join(format_record(epoch) + "\n" for epoch in epochs[:count])
    write_aside(run_dir / METRICS, lambda aside: aside.write_text(text, encoding="utf-8"))
    return epochs[:count]


def suggest_retraining(run_dir: Path) -> str:
    """Return the next step for a damaged run."""
    return f"restore an intact copy, or move {run_dir} away and train again"


def _make_run_folder(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run_dir} could not be made ({error.strerror or error}); choose another folder") from error


def _counts_as_content(path: Path) -> bool:
    """Return whether a file makes a folder non-empty; the lock and the remains of a killed first write do not."""
    return path.name != _LOCK and not (path.name.startswith(".") and path.name.endswith(".tmp"))


def _make_read_error(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} could not be read ({error.strerror or error}); check its permissions")
