"""Where the commands print: results to stdout, progress and errors to stderr."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, *, lines: bool = False) -> Generator[Callable[[int, int, float | str], None]]:
    """A bar on stderr, told (done, all, loss or step's name).

    Where stderr is no terminal, nothing is drawn; with `lines`, each step gets a line.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, note="", total=None)

        def show(done: int, total: int, note: float | str) -> None:
            text = f"loss {note:.4f}" if isinstance(note, float) else note
            bar.update(task, completed=done, total=total, note=text)
            if lines and not err.is_terminal:
                err.print(f"{title}: {done} of {total}, {text}", markup=False)

        yield show
