"""How a command is stopped: SIGTERM takes the way of Ctrl-C, so that both leave what can be gone on with."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_GO_ON = {
    "train": "; what is finished is kept, go on with --resume",
    "evaluate": "; what is finished is kept, the same command goes on",
    "reproduce": "; what is finished is kept, the same command goes on",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def stoppable() -> Generator[None]:
    """Raise `Terminated` in the main thread when SIGTERM comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def told(stop: KeyboardInterrupt, command: str) -> tuple[str, int]:
    """What a stopped command says, and the code it ends with.

    >>> told(KeyboardInterrupt(), "demo")
    ('stopped', 130)
    """
    number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
    return f"stopped{_GO_ON.get(command, '')}", 128 + number  # as shells have it


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
