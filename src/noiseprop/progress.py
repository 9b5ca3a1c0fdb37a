"""Progress of long work on stderr: a bar on a terminal, otherwise a plain line now and then.

`progress_bar` is for work whose steps report themselves, `track_progress` for a loop over a sequence.
"""

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

error_console = Console(stderr=True, highlight=False, soft_wrap=True)
LINE_INTERVAL = 15.0  # seconds between two plain lines

Item = TypeVar("Item")
ProgressCallback = Callable[[int, int, float | str], None]
"""Called with steps done, all steps, and the loss or the name of the step."""


class RateColumn(ProgressColumn):
    """Column with steps per second, or seconds per step if that is the larger number."""

    def render(self, task: Task) -> Text:
        """Return the rate of one bar, empty until there is one."""
        return Text(format_rate(task.speed), style="dim")


def format_rate(speed: float | None) -> str:
    """Format a speed in steps per second in at most eight characters.

    >>> format_rate(123.4), format_rate(0.25), format_rate(None)
    ('123/s', '4.0 s/it', '')
    """
    if not speed:
        return ""
    return f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.2g} s/it" if speed <= 0.1 else f"{1 / speed:.1f} s/it"


def create_progress_bars(*, is_shown: bool | None = None) -> Progress:
    """Create progress bars of one terminal line each: title, steps done, rate, time taken and time left."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        BarColumn(12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=error_console,
        transient=True,
        expand=True,
        disable=not (error_console.is_terminal if is_shown is None else is_shown),
    )


@contextmanager
def progress_bar(title: str, *, lines: bool = False) -> Generator[ProgressCallback]:
    """Show a bar for work of many steps.

    Without a terminal, print a line with rate and time left every `LINE_INTERVAL` seconds, or one for each step if
    `lines` is set.
    """
    plain = PlainProgress(title)
    with create_progress_bars() as bars:
        task = bars.add_task(title, note="", total=None)

        def update_bar(done: int, total: int, note: float | str) -> None:
            text = note if isinstance(note, str) else f"loss {note:.4f}"
            bars.update(task, completed=done, total=total, note=text)
            if not error_console.is_terminal:
                plain.print_line(done, total, text, now=lines)

        yield update_bar


class PlainProgress:
    """Progress of one piece of work in lines, at most one every `LINE_INTERVAL` seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.start = self.last = time.monotonic()
        self.first = self.done = self.total = 0

    def print_line(self, done: int, total: int, note: str, *, now: bool = False) -> None:
        """Print a line if it is time, or if `now` is set."""
        clock = time.monotonic()
        if total != self.total or done < self.done:  # another kind of step; a resumed training does not start at 0
            self.first, self.total, self.start = done, total, clock
        self.done = done
        if not now and clock - self.last < LINE_INTERVAL:
            return
        self.last = clock
        line = f"{self.title}: {done} of {total}, {note}"
        speed = (done - self.first) / (clock - self.start) if clock > self.start else 0.0
        if speed and done < total and not now:
            line += f", {format_rate(speed)}, {_format_duration((total - done) / speed)} left"
        error_console.print(line, markup=False)


def track_progress(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Yield the items and show a bar of how many are done."""
    with progress_bar(title) as update:
        for done, item in enumerate(items):
            if done % 16 == 0:
                update(done, len(items), "")
            yield item


def _format_duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds.

    >>> _format_duration(3725)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
