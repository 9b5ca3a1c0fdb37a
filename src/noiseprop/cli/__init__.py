"""The command `noiseprop`; one file per command, each a typed dataclass with a `run` method."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from inspect import getdoc
from typing import Annotated, Any, TextIO, Union

import tyro
from tyro.conf import DisallowNone, subcommand

from noiseprop.cli.bench import Bench
from noiseprop.cli.check import Check
from noiseprop.cli.data import Data
from noiseprop.cli.demo import Demo
from noiseprop.cli.evaluate import Evaluate
from noiseprop.cli.inspect_noise import Inspect
from noiseprop.cli.report import Report
from noiseprop.cli.reproduce import Reproduce
from noiseprop.cli.signals import stoppable, told
from noiseprop.cli.train import Train
from noiseprop.errors import NoisepropError, NoisepropWarning, suggest_name

COMMANDS: dict[str, type[Any]] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "inspect": Inspect,
    "report": Report,
    "reproduce": Reproduce,
    "data": Data,
    "check": Check,
    "bench": Bench,
}
_SHELLS = ("bash", "zsh", "fish")

_LONGEST_SENTENCE = 2_000  # characters

_HELP = """usage: noiseprop COMMAND [OPTIONS]

Learn how much noise each neuron should carry, and judge what it does.

{commands}

Start with:          noiseprop demo
About one command:   noiseprop COMMAND --help
Names by TAB:        eval "$(noiseprop --completion bash)", or in ~/.bashrc;
                     zsh as well; noiseprop --completion fish | source
Which version:       noiseprop --version

It ends with 0 when all is well, 1 after an error or a failed check, 2 after a
wrong use, and 130 after Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 after an error that the user can put right, told in one sentence on stderr; 130 after Ctrl-C and 143 after
        SIGTERM. Arguments that make no sense end with SystemExit(2).
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()  # here, where a closed pipe is no error
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        _forget_output()
    except OSError as error:
        return _fail_to_write(error)
    return 0


def _run(arguments: list[str]) -> int:
    command = None
    try:
        command = _parse(arguments)
        _refuse_processes(command)
        with stoppable(), warnings.catch_warnings():
            warnings.filterwarnings("always", category=NoisepropWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            with _only_json() if getattr(command, "json", False) else nullcontext():
                command.run()
    except NoisepropError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as stop:
        return _fail(*told(stop, type(command).__name__.lower()))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail_to_write(error)
    return 0


def _fail_to_write(error: OSError) -> int:
    _forget_output()
    said = f"{error.filename or 'the system'}: {error.strerror or str(error) or type(error).__name__}"
    return _fail(f"{said}; check the path, its rights and the space", 1)


def _forget_output() -> None:
    """Drop what stdout or stderr does not take, which Python would try to write once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _only_json() -> Any:
    from noiseprop.cli.console import json_alone  # rich takes its time to import

    return json_alone()


def _refuse_processes(command: Any) -> None:
    """Several processes of torchrun would all do the same, and write over each other's files."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and not isinstance(command, Train | Evaluate):
        name = type(command).__name__.lower()
        raise NoisepropError(f"torchrun is for train and evaluate; start `noiseprop {name}` in one process")


def _parse(arguments: list[str]) -> Any:
    """A command's dataclass; where help, the version or a completion script is asked for, SystemExit after printing."""
    name, *rest = arguments or [""]
    if name in COMMANDS:
        return tyro.cli(COMMANDS[name], prog=f"noiseprop {name}", args=rest, config=(DisallowNone,))
    if name in ("-h", "--help"):
        print(_help(), end="")
    elif name == "--version":
        from importlib.metadata import version

        print(f"noiseprop {version('noiseprop')}")
    elif name == "--completion":
        _print_completion(rest)
    elif name:
        _misuse(f"{name!r} is no command; choose one of {', '.join(COMMANDS)}{suggest_name(name, COMMANDS)}")
    else:
        print(_help(), end="", file=sys.stderr)
        _misuse("which command?")
    raise SystemExit(0)


def _help() -> str:
    lines = [f"  {name:<10} {_first_line(command)}" for name, command in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))


def _first_line(command: type[Any]) -> str:
    return (getdoc(command) or "").partition("\n")[0]


def _print_completion(shell: list[str]) -> None:
    if len(shell) != 1 or shell[0] not in _SHELLS:
        _misuse(f"--completion takes one of {', '.join(_SHELLS)}")
    listed = tuple(
        Annotated[command, subcommand(name, description=_first_line(command))] for name, command in COMMANDS.items()
    )
    union: Any = Union[listed]  # noqa: UP007 - made while running
    tyro.cli(union, prog="noiseprop", args=["--tyro-print-completion", *shell], config=(DisallowNone,))


def _misuse(sentence: str) -> None:
    _fail(sentence, 2)
    raise SystemExit(2)


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
