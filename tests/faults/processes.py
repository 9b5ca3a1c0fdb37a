"""Commands in processes of their own, to be sent signals and looked at; children.py is at their other end."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONG_ENOUGH = 300.0  # seconds for anything


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int  # -9 after SIGKILL
    out: str
    err: str

    def told(self, code: int = 1) -> str:
        """The one sentence that it ended with, after what it told of its progress, which slow machines see."""
        assert self.code == code, self
        *progress, sentence = self.err.splitlines(keepends=True)
        assert all(re.search(r": [\d,]+ of [\d,]+, ", line) for line in progress), self
        assert sentence.startswith("noiseprop: "), self
        return sentence


class Child:
    """A command at work."""

    def __init__(self, server: subprocess.Popen) -> None:
        self._server, self.pid = server, int(server.stdout.readline())

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def at(self, happened: Callable[[], Any]) -> "Child":
        """Wait until something has happened."""
        deadline = time.monotonic() + LONG_ENOUGH
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return self

    def end(self) -> Ended:
        return Ended(**json.loads(self._server.stdout.readline()))


class Children:
    """Starts commands, one after another; see children.py."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("children.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | environment,
        )

    def start(self, *arguments: object, **more: Any) -> Child:
        """Start a command; `more` as for `live` in children.py."""
        self._server.stdin.write(json.dumps({"arguments": list(map(str, arguments)), **more}, default=str) + "\n")
        return Child(self._server)

    def run(self, *arguments: object, **more: Any) -> Ended:
        return self.start(*arguments, **more).end()

    def stop(self) -> None:
        self._server.stdin.close()
        self._server.wait(LONG_ENOUGH)
        self._server.stdout.close()
