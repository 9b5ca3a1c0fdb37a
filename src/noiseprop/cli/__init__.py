"""The command `noiseprop`; one file per command, each a typed dataclass with a `run` method."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from inspect import getdoc
from typing import Annotated, Any, TextIO, Union

import tyro
from tyro.conf import subcommand

from noiseprop.cli.demo import Demo
from noiseprop.cli.evaluate import Evaluate
from noiseprop.cli.inspect import Inspect
from noiseprop.cli.report import Report
from noiseprop.cli.reproduce import Reproduce
from noiseprop.cli.stopping import stoppable, told
from noiseprop.cli.train import Train
from noiseprop.errors import NoisepropError, NoisepropWarning

COMMANDS: dict[str, type[Any]] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "reproduce": Reproduce,
    "inspect": Inspect,
    "report": Report,
}

_LONGEST_SENTENCE = 2_000  # characters

_DESCRIPTION = """Learn how much noise each neuron should carry, and judge what it does.

Start with: noiseprop demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 after an error that the user can put right, told in one sentence on stderr; 130 after Ctrl-C and 143 after
        SIGTERM. Arguments that make no sense end with SystemExit(2).
    """
    command = None
    try:
        command = _parse(sys.argv[1:] if arguments is None else list(arguments))
        _refuse_processes(command)
        with stoppable(), warnings.catch_warnings():
            warnings.filterwarnings("always", category=NoisepropWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            command.run()
        sys.stdout.flush()
    except NoisepropError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as stop:
        return _fail(*told(stop, type(command).__name__.lower()))
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        _forget_output()
    except OSError as error:
        _forget_output()
        said = f"{error.filename or 'the system'}: {error.strerror or str(error) or type(error).__name__}"
        return _fail(f"{said}; check the path, its rights and the space", 1)
    return 0


def _forget_output() -> None:
    """Drop what stdout does not take, which Python would try to write once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_processes(command: Any) -> None:
    """Several processes of torchrun would all do the same, and write over each other's files."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and not isinstance(command, Train):
        name = type(command).__name__.lower()
        raise NoisepropError(f"torchrun is for `noiseprop train` alone; start `noiseprop {name}` in one process")


def _parse(arguments: list[str]) -> Any:
    """A command's dataclass. Its own help has the whole docstring, the list of commands only first lines."""
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        return tyro.cli(COMMANDS[name], prog=f"noiseprop {name}", args=rest)
    listed = tuple(
        Annotated[command, subcommand(name, description=(getdoc(command) or "").partition("\n")[0])]
        for name, command in COMMANDS.items()
    )
    union: Any = Union[listed]  # noqa: UP007 - made while running
    return tyro.cli(union, prog="noiseprop", description=_DESCRIPTION, args=arguments)


def _show_warning(
    otherwise: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours is a sentence on stderr; others look as ever."""
    if issubclass(category, NoisepropWarning):
        print(f"noiseprop: {message}", file=sys.stderr)
    else:
        otherwise(message, category, filename, lineno, file, line)


def _fail(sentence: str, code: int) -> int:
    """Tell an error; what a stranger's file puts into its sentence cannot steer the terminal, nor fill it."""
    told = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence[:_LONGEST_SENTENCE])
    print(f"noiseprop: {told}", file=sys.stderr)
    return code
