"""`noiseprop reproduce`."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.progress import TaskID

    from noiseprop.paper.grid import Show
    from noiseprop.paper.reproduction import Job


@dataclass(frozen=True)
class Reproduce:
    """Redo a table or figure of the paper: train, attack, and set beside its numbers.

    Table 3 is the MLPs on MNIST, Table 4 the CNNs; Figure 3 needs Table 3's runs.

    A stopped reproduction goes on by the same command; what is finished is kept.

    For example:
      noiseprop reproduce table3
      noiseprop reproduce table3 --protocol released-code --switch gradient-sign
    """

    what: Annotated[Positional[Literal["table3", "table4", "figure3"]], arg(metavar="WHAT")]
    """table3, table4 or figure3."""
    seeds: int = 5
    """How many networks of each kind, with seeds 0, 1, ..."""
    epochs: int = 30
    """Passes over the training images."""
    jobs: int = 2
    """Processes; each takes its share of the cores."""
    protocol: Literal["paper", "released-code"] = "paper"
    """What the paper says, or what its authors' code does instead."""
    switch: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = ()
    """Departures of the released code: to add to paper, or to take from released-code. A wrong name lists them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the training. bf16 is faster where the processor has it (AMX, AVX512-BF16)."""
    data: Literal["mnist", "mnist-5k"] = "mnist"
    """mnist-5k is for a quick look: 5,000 digits, no download."""
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $NOISEPROP_DATA, else downloaded once)")
    ] = None
    """Folder of the official files."""
    runs: Annotated[Path, arg(metavar="DIR")] = Path("runs/reproduce")
    """Where the trained networks are kept."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Where the table's JSON or the figure is put."""

    def run(self) -> None:
        """Do all runs, show progress, write what came of them and print it."""
        from noiseprop.cli.show import out
        from noiseprop.paper.figures import draw_figure_3
        from noiseprop.paper.grid import run_all
        from noiseprop.paper.reproduction import finished
        from noiseprop.paper.results import make_record, write_record
        from noiseprop.paper.tables import main_table, text_table

        jobs = self._jobs()
        self.out.mkdir(parents=True, exist_ok=True)
        with _bars(self.what, len(jobs)) as show:
            run_all(jobs, processes=self.jobs, show=show)
        table = "table4" if self.what == "table4" else "table3"
        record = make_record(table, [finished(job) for job in jobs])
        name = f"{self.what}-{jobs[0].protocol.name}" + ("" if self.data == "mnist" else f"-{self.data}")
        if self.what == "figure3":
            svg, png = draw_figure_3(record, self.out / name)
            out.print(f"Figure 3 is in {svg} and {png}.")
            return
        path = self.out / f"{name}.json"
        write_record(record, path)
        out.print(text_table(main_table(record)), markup=False)
        out.print(f"Accuracy: ours, mean ± standard deviation over {self.seeds} seeds (the paper's). All is in {path}.")

    def _jobs(self) -> "list[Job]":
        """Every run that is asked for; data that are missing are told here, before processes start."""
        from noiseprop.data import load
        from noiseprop.errors import InputError
        from noiseprop.paper.protocol import FIGURE_3, TABLES, attack_settings, protocol
        from noiseprop.paper.reproduction import Job

        chosen = protocol(self.protocol, self.switch)
        for name, value in (("seeds", self.seeds), ("jobs", self.jobs), ("epochs", self.epochs)):
            if value < 1:
                raise InputError(f"--{name} is {value}; give 1 or more")
        load(self.data, self.data_dir)
        settings = attack_settings(chosen, self.data, self.what)
        rows = FIGURE_3 if self.what == "figure3" else TABLES[self.what]
        return [
            Job(row, seed, chosen, self.data, self.data_dir, self.epochs, self.precision, settings, self.runs)
            for seed in range(self.seeds)
            for row in rows
        ]


@contextmanager
def _bars(title: str, runs: int) -> "Generator[Show]":
    """A line for each run at work and one for all, on stderr; where that is no terminal, a line for each that ends."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from noiseprop.cli.show import err
    from noiseprop.paper.grid import DONE

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=err, transient=True, disable=not err.is_terminal) as bars:
        whole = bars.add_task(title, note="runs", total=runs)
        tasks: dict[str, TaskID] = {}
        ended = 0

        def show(name: str, done: int, total: int, what: str) -> None:
            nonlocal ended
            if name not in tasks:
                tasks[name] = bars.add_task(name, note="")
            if what != DONE:
                bars.update(tasks[name], completed=done, total=total, note=what)
                return
            ended += 1
            bars.remove_task(tasks[name])
            bars.advance(whole)
            if not err.is_terminal:
                err.print(f"{title}: {name} is done, {ended} of {runs}", markup=False)

        yield show
