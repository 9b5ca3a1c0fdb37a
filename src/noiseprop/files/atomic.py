"""Write files atomically: fill a temporary file beside the target, then rename it."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from noiseprop.errors import RunError
from noiseprop.files.checksum import add_checksum


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so that `path` never holds a partial file.

    An existing file keeps its permissions; a new one gets those of the umask.

    Raises:
        RunError: the file cannot be written; the previous file stays at `path`.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        mode = _create_empty(aside)  # as the umask asks; safetensors would leave 0600
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
        write(aside)
        aside.chmod(mode & 0o777)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _make_write_error(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that `write_aside` can write `path`, before work whose result would be lost otherwise.

    Raises:
        RunError: it cannot.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _create_empty(aside)
        aside.unlink()
    except OSError as error:
        raise _make_write_error(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` atomically as indented JSON with a checksum (see `add_checksum`); NaN and infinity raise."""
    text = json.dumps(add_checksum(value), indent=2, allow_nan=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _create_empty(path: Path) -> int:
    """Create an empty file, in place of an old one, and return its mode."""
    path.unlink(missing_ok=True)
    path.touch()
    return path.stat().st_mode


def _make_write_error(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} could not be written ({error.strerror or error}); free space or choose another folder")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
