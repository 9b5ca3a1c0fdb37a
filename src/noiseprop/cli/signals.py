"""SIGTERM and Ctrl-C: both stop a command in the same way, so that it can be resumed."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_RESUME_HINTS = {
    "train": "; finished epochs are saved, continue with --resume",
    "evaluate": "; finished parts are saved, repeat the command to continue",
    "reproduce": "; finished parts are saved, repeat the command to continue",
}


class Terminated(KeyboardInterrupt):
    """Stop by SIGTERM."""


@contextmanager
def raise_on_sigterm() -> Generator[None]:
    """Raise `Terminated` in the main thread on SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def describe_stop(stop: KeyboardInterrupt, command: str) -> tuple[str, int]:
    """Return the message of a stopped command and its exit code.

    >>> describe_stop(KeyboardInterrupt(), "demo")
    ('stopped', 130)
    """
    number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
    return f"stopped{_RESUME_HINTS.get(command, '')}", 128 + number  # the convention of shells


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated
