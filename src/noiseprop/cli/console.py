"""Consoles of the commands: results go to stdout, progress and errors to stderr."""

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from json import dumps
from typing import Any, TextIO

from rich.console import Console

from noiseprop.progress import error_console as error_console
from noiseprop.progress import progress_bar as progress_bar


class _Pipeable(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error that `main` handles for every closed pipe; rich would exit with 1."""
        raise BrokenPipeError


out = _Pipeable(highlight=False, soft_wrap=True)
_json_streams: list[TextIO] = []


def print_json(document: Any) -> None:
    """Print a result as JSON."""
    if not out.quiet:  # quiet in every process of a training but the first
        print(dumps(document, indent=1, allow_nan=False), file=_json_streams[-1] if _json_streams else sys.stdout)


@contextmanager
def reserve_stdout_for_json() -> Generator[None]:
    """Reserve stdout for `print_json`: other output, such as that of user-defined networks, goes to stderr."""
    _json_streams.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_streams.pop()
