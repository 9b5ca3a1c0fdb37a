"""Command `noiseprop`: one file per command, each a typed dataclass with a `run` method."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from functools import partial
from inspect import getdoc
from io import StringIO
from typing import Annotated, Any, NoReturn, TextIO, Union

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
from noiseprop.cli.signals import describe_stop, raise_on_sigterm
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

_BOX_EDGE = re.compile(r"\x1b\[[0-9;]*m|^│ | *│$")
_LONGEST_SENTENCE = 2_000  # characters

_HELP = """usage: noiseprop COMMAND [OPTIONS]

Learn how much noise each neuron should carry, and evaluate the result.

{commands}

Start with:          noiseprop demo
About one command:   noiseprop COMMAND --help
Completion by TAB:   eval "$(noiseprop --completion bash)", or in ~/.bashrc;
                     also for zsh; noiseprop --completion fish | source
Version:             noiseprop --version

Exit codes: 0 for success, 1 for an error or a failed check, 2 for invalid
arguments, 130 after Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 for success; 1 after an error that the user can fix, which is printed on stderr in one sentence; 130 after
        Ctrl-C; 143 after SIGTERM.

    Raises:
        SystemExit: with code 2 for invalid arguments, with code 0 after help, version or a completion script.
    """
    try:
        try:
            return _run_command(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()  # flush here, where a closed pipe is not an error
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        _discard_output()
    except OSError as error:
        return _print_write_error(error)
    return 0


def _run_command(arguments: list[str]) -> int:
    command = None
    try:
        command = _parse_command(arguments)
        _check_single_process(command)
        with raise_on_sigterm(), warnings.catch_warnings():
            warnings.filterwarnings("always", category=NoisepropWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            with _only_json() if getattr(command, "json", False) else nullcontext():
                command.run()
    except NoisepropError as error:
        return _print_error(str(error), 1)
    except KeyboardInterrupt as stop:
        return _print_error(*describe_stop(stop, type(command).__name__.lower()))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _print_write_error(error)
    return 0


def _print_write_error(error: OSError) -> int:
    _discard_output()
    cause = f"{error.filename or 'the system'}: {error.strerror or str(error) or type(error).__name__}"
    return _print_error(f"{cause}; check the path, its permissions and the free space", 1)


def _discard_output() -> None:
    """Drop output that stdout or stderr cannot take, because Python would write it again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _only_json() -> Any:
    from noiseprop.cli.console import reserve_stdout_for_json  # rich takes its time to import

    return reserve_stdout_for_json()


def _check_single_process(command: Any) -> None:
    """Raise an error if torchrun starts several processes of a command that would overwrite its own files."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and not isinstance(command, Train | Evaluate):
        name = type(command).__name__.lower()
        raise NoisepropError(f"torchrun works with train and evaluate only; start `noiseprop {name}` in one process")


def _parse_command(arguments: list[str]) -> Any:
    """Return a command's dataclass; for help, the version or a completion script, print it and raise SystemExit."""
    name, *rest = arguments or [""]
    if name in COMMANDS:
        report = StringIO()
        try:
            with redirect_stderr(report):
                return tyro.cli(COMMANDS[name], prog=f"noiseprop {name}", args=rest, config=(DisallowNone,))
        except SystemExit as stop:
            if stop.code != 2:
                raise
            _exit_misuse(f"{name}: {_summarize_parser_error(report.getvalue())}; see noiseprop {name} --help")
    if name in ("-h", "--help"):
        print(_format_help(), end="")
    elif name == "--version":
        from importlib.metadata import version

        print(f"noiseprop {version('noiseprop')}")
    elif name == "--completion":
        _print_completion(rest)
    elif name:
        _exit_misuse(f"{name!r} is not a command; choose one of {', '.join(COMMANDS)}{suggest_name(name, COMMANDS)}")
    else:
        print(_format_help(), end="", file=sys.stderr)
        _exit_misuse("expected a command, got none; choose one of " + ", ".join(COMMANDS))
    raise SystemExit(0)


def _summarize_parser_error(report: str) -> str:
    r"""Return the box that tyro prints about invalid arguments as one sentence.

    >>> rows = ("Unrecognized options: --modle, MLP", "────", "Perhaps you meant:", "    --model NAME", "        Name.")
    >>> _summarize_parser_error("".join(f"│ {row:<40} │\n" for row in rows))
    'Unrecognized options: --modle, MLP (did you mean --model?)'
    """
    rows = [_BOX_EDGE.sub("", row).rstrip() for row in report.splitlines() if row[:1] != "╭"]
    sections: list[list[str]] = [[]]
    for row in rows:
        if set(row) <= set("─╯╰"):  # a rule, or an empty row
            sections.append([])
        else:
            sections[-1].append(row)
    first, *others = [section for section in sections if section] or [["invalid arguments"]]
    missing = first[0].startswith("Missing from")
    options = [row.split()[0] for row in first[1:] if row[:8].strip()]
    sentence = f"requires {', '.join(options)}" if missing else " ".join(row.strip() for row in first).rstrip(".")
    near = [row.split()[0] for rows in others if "meant" in rows[0] for row in rows[1:] if row[:8].strip()]
    return sentence + (f" (did you mean {' or '.join(near)}?)" if near else "")


def _format_help() -> str:
    lines = [f"  {name:<10} {_first_line(command)}" for name, command in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))


def _first_line(command: type[Any]) -> str:
    return (getdoc(command) or "").partition("\n")[0]


def _print_completion(shell: list[str]) -> None:
    if len(shell) != 1 or shell[0] not in _SHELLS:
        _exit_misuse(f"--completion takes one of {', '.join(_SHELLS)}")
    listed = tuple(
        Annotated[command, subcommand(name, description=_first_line(command))] for name, command in COMMANDS.items()
    )
    union: Any = Union[listed]  # noqa: UP007 - built at run time
    tyro.cli(union, prog="noiseprop", args=["--tyro-print-completion", *shell], config=(DisallowNone,))


def _exit_misuse(sentence: str) -> NoReturn:
    _print_error(sentence, 2)
    raise SystemExit(2)


def _show_warning(
    show_other: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this package as a sentence on stderr, and pass others on."""
    if issubclass(category, NoisepropWarning):
        print(f"noiseprop: {message}", file=sys.stderr)
    else:
        show_other(message, category, filename, lineno, file, line)


def _print_error(sentence: str, code: int) -> int:
    """Print an error, with control characters escaped and its length bounded, because files may supply its text."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence[:_LONGEST_SENTENCE])
    print(f"noiseprop: {text}", file=sys.stderr)
    return code
