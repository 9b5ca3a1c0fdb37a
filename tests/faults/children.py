"""Commands in processes of their own that can be killed; forked from one that has imported all, so they start at once.

Run as a script, it reads one request a line, the arguments of `live` as JSON, and answers two lines: the child's
number, and when it and all that it has started have ended, {"code", "out", "err"}.
"""

import importlib
import json
import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

FEW = {"attack_images": 20, "trust_images": 8, "vote_draws": 2, "attack_draws": (1, 2)}
ROWS = ("MLP", "MLPN")  # of Table 3
NEEDED = (
    "torch._dynamo",  # a process's first optimizer imports it
    *(
        f"noiseprop.{name}"
        for name in ("cli", "noise.kernels.numba_noise", "paper.figures", "paper.grid", "paper.results")
    ),
    *(f"noiseprop.{name}" for name in ("runs.surrogates", "report.noise_table")),
)


def shorten(setitem: Callable[[Any, str, Any], object]) -> None:
    """Let evaluations be small, and Table 3 have two rows."""
    from noiseprop.evaluation.settings import SETTINGS
    from noiseprop.paper.specs import TABLES, Row

    setitem(SETTINGS, "mnist", replace(SETTINGS["mnist"], **FEW))
    setitem(TABLES, "table3", tuple(map(Row, ROWS)))


def serve() -> None:
    """Fork a child for each request, one after another."""
    for name in NEEDED:
        importlib.import_module(name)
    shorten(lambda of, key, value: of.__setitem__(key, value))
    warm_up()
    for line in iter(sys.stdin.readline, ""):
        pipes = [os.pipe(), os.pipe()]
        child = os.fork()
        if child == 0:
            for number, (_, end) in enumerate(pipes, 1):
                os.dup2(end, number)
            for pair in pipes:
                for end in pair:
                    os.close(end)
            sys.exit(live(**json.loads(line)))
        print(child, flush=True)
        for _, end in pipes:
            os.close(end)
        out, err = drain([end for end, _ in pipes])
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "out": out, "err": err}), flush=True)


def warm_up() -> None:
    """Let kernels be loaded; with one thread to compute, there is none that a fork would lose."""
    import torch

    from noiseprop.noise.sigma_adam import SigmaAdam, sigmas
    from noiseprop.paper import build

    model = build("MLPN", seed=0)
    model(torch.zeros(2, 1, 28, 28)).sum().backward()
    SigmaAdam(sigmas(model)).step()


def drain(ends: list[int]) -> Iterator[str]:
    """All that comes out of some pipes."""
    read: dict[int, bytes] = dict.fromkeys(ends, b"")
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                some = os.read(key.fd, 65536)
                read[key.fd] += some
                if not some:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return (text.decode() for text in read.values())


def live(
    arguments: list[str],
    *,
    do: str = "noiseprop",
    limit: int | None = None,
    die_at: tuple[str, int] | None = None,
    stdout: str | None = None,
    cache: str | None = None,
) -> int:
    """What a child does.

    Args:
        arguments: of the command, or of `load`.
        do: "noiseprop", or "load" to read a data set.
        limit: of the size of its files, in bytes.
        die_at: see `death`.
        stdout: a file to print to.
        cache: $XDG_CACHE_HOME.
    """
    os.close(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    if stdout:
        os.dup2(os.open(stdout, os.O_WRONLY), 1)
    if cache:
        os.environ["XDG_CACHE_HOME"] = cache
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if die_at is not None:
        sys.addaudithook(death(*die_at))
    from noiseprop.cli import main
    from noiseprop.data import load
    from noiseprop.errors import NoisepropError

    if do == "noiseprop":
        return main(arguments)
    try:
        print(load(arguments[0], Path(arguments[1])).source)
    except NoisepropError as error:
        print(f"noiseprop: {error}", file=sys.stderr)
        return 1
    return 0


def death(folder: str, number: int) -> Callable[[str, tuple[Any, ...]], None]:
    """A hook that kills this process just before the `number`-th time that it touches a file in a folder."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.chmod") and str(arguments[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        serve()
