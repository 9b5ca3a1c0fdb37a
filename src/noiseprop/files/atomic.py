"""Write files atomically: fill a temporary file beside the target, then rename it."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from noiseprop.errors import RunError
from noiseprop.files.checksum import sealed


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place, so that `path` is never half-written.

    Raises:
        RunError: the file cannot be written; what was at `path` is still there.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        mode = _touch(aside)  # the one that the umask asks for; safetensors would leave 0600
        write(aside)
        aside.chmod(mode & 0o777)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Try whether `write_aside` could write `path`, before work that would be lost if it could not.

    Raises:
        RunError: it could not.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _touch(aside)
        aside.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _touch(path: Path) -> int:
    """Make an empty file anew; its mode."""
    path.unlink(missing_ok=True)
    path.touch()
    return path.stat().st_mode


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} could not be written ({error.strerror or error}); free space or choose another folder")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` aside as indented JSON with a checksum (see `sealed`); NaN and infinity are refused."""
    text = json.dumps(sealed(value), indent=2, allow_nan=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _fsync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
