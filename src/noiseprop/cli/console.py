"""Where the commands print: results to stdout, progress and errors to stderr."""

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
        """Let `main` end the command as it ends others whose reader has left; rich would exit with 1."""
        raise BrokenPipeError


out = _Pipeable(highlight=False, soft_wrap=True)
_for_json: list[TextIO] = []


def print_json(document: Any) -> None:
    """A result for programs."""
    if not out.quiet:  # as in all processes of a training but the first
        print(dumps(document, indent=1, allow_nan=False), file=_for_json[-1] if _for_json else sys.stdout)


@contextmanager
def json_alone() -> Generator[None]:
    """Let nothing but `print_json` write to stdout: what else is printed, by a user's own network too, is on stderr."""
    _for_json.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _for_json.pop()
