"""How far long work has come, on stderr: a bar on a terminal, else a plain line now and then."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

err = Console(stderr=True, highlight=False, soft_wrap=True)
EVERY = 15.0  # seconds between two plain lines

Item = TypeVar("Item")
Tell = Callable[[int, int, float | str], None]
"""Told (done, all, loss or step's name)."""


class RateColumn(ProgressColumn):
    """Steps a second, or seconds a step where that is the larger number."""

    def render(self, task: Task) -> Text:
        """The rate of one bar; empty until there is one."""
        return Text(rate(task.speed), style="dim")


def rate(speed: float | None) -> str:
    """A speed in steps a second as words of at most eight characters.

    >>> rate(123.4), rate(0.25), rate(None)
    ('123/s', '4.0 s/it', '')
    """
    if not speed:
        return ""
    return f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.2g} s/it" if speed <= 0.1 else f"{1 / speed:.1f} s/it"


def bars(*, shown: bool | None = None) -> Progress:
    """Bars for one terminal line each: what, how far, rate, time so far and time left."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        BarColumn(12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=err,
        transient=True,
        expand=True,
        disable=not (err.is_terminal if shown is None else shown),
    )


@contextmanager
def progress_bar(title: str, *, lines: bool = False) -> Generator[Tell]:
    """A bar for work of many steps.

    Where stderr is no terminal there is a line every `EVERY` seconds, with rate and time left; with `lines`, one for
    each step.
    """
    plain = PlainLines(title)
    with bars() as drawn:
        task = drawn.add_task(title, note="", total=None)

        def show(done: int, total: int, note: float | str) -> None:
            text = note if isinstance(note, str) else f"loss {note:.4f}"
            drawn.update(task, completed=done, total=total, note=text)
            if not err.is_terminal:
                plain.tell(done, total, text, now=lines)

        yield show


class PlainLines:
    """One piece of work told in lines, no more often than every `EVERY` seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.start = self.last = time.monotonic()
        self.first = self.done = self.total = 0

    def tell(self, done: int, total: int, note: str, *, now: bool = False) -> None:
        """Say so if it is time, or `now`."""
        clock = time.monotonic()
        if total != self.total or done < self.done:  # a new kind of step; a resumed training does not begin at 0
            self.first, self.total, self.start = done, total, clock
        self.done = done
        if not now and clock - self.last < EVERY:
            return
        self.last = clock
        line = f"{self.title}: {done} of {total}, {note}"
        speed = (done - self.first) / (clock - self.start) if clock > self.start else 0.0
        if speed and done < total and not now:
            line += f", {rate(speed)}, {_clock((total - done) / speed)} left"
        err.print(line, markup=False)


def told(items: Sequence[Item], title: str) -> Iterator[Item]:
    """The items, with a bar for how many of them are done."""
    with progress_bar(title) as show:
        for done, item in enumerate(items):
            if done % 16 == 0:
                show(done, len(items), "")
            yield item


def _clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> _clock(3725)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
