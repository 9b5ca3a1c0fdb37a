"""`noiseprop reproduce`."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from noiseprop.cli.options import DataDir, Device, Json, default

if TYPE_CHECKING:
    from rich.progress import TaskID

    from noiseprop.paper.grid import Show
    from noiseprop.paper.plan import Plan
    from noiseprop.paper.reproduction import Job
    from noiseprop.paper.results import Record


@dataclass(frozen=True)
class Reproduce:
    """Redo a table or figure of the paper, and set it beside its numbers.

    A stopped one goes on by the same command. For example:
      noiseprop reproduce table5 --recipe fast --precision bf16 --seeds 1
    """

    what: Annotated[
        Positional[Literal["table3", "table4", "table5", "table6", "figure3", "figure4"]], arg(metavar="WHAT")
    ]
    """table3 (MLPs), table4 (CNNs), table5, table6 (ResNets), figure3, or figure4, of Table 6's first runs."""
    seeds: Annotated[int, arg(metavar="INT")] = 5
    """Networks of each kind, with seeds 0, 1, ..."""
    models: Annotated[tuple[str, ...], default("all", "NAME ...")] = ()
    """The table's rows to do now, by name."""
    recipe: Annotated[Literal["table1", "fast"], arg(metavar="NAME")] = "table1"
    """table1, the paper's training, or fast."""
    epochs: Annotated[int | None, default("the recipe's", "INT")] = None
    """Passes over the training images."""
    jobs: Annotated[int, arg(metavar="INT")] = 2
    """Processes; they share the cores."""
    ray: Annotated[tuple[str] | tuple[()] | None, arg(metavar="[ADDRESS]", help_behavior_hint="")] = None
    """On this machine's Ray cluster."""
    protocol: Annotated[Literal["paper", "released-code"], arg(metavar="NAME")] = "paper"
    """paper, or released-code, its authors'."""
    switch: Annotated[tuple[str, ...], default("none", "NAME ...")] = ()
    """Departures to add to paper, or take from released-code. A wrong name lists them."""
    test_images: Annotated[int | None, default("all; of ResNets 1000", "INT")] = None
    """Test images to judge on."""
    precision: Annotated[Literal["fp32", "bf16"], arg(metavar="NAME")] = "fp32"
    """fp32, or bf16: quick with AMX."""
    judge: Annotated[Literal["fp32", "bf16"], arg(metavar="NAME")] = "fp32"
    """Precision of the judging."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1 or the like."""
    data: Annotated[Literal["mnist", "mnist-5k"], arg(metavar="NAME")] = "mnist"
    """mnist or mnist-5k, for Tables 3 and 4."""
    data_dir: DataDir = None
    """Folder of the official files."""
    runs: Annotated[Path, arg(metavar="DIR")] = Path("runs/reproduce")
    """For the trained networks."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """For the table's JSON or the figure."""
    json: Json = False
    """Print the table's or figure's record as JSON."""

    def run(self) -> None:
        """Do all runs, show progress, write what came of them and print it."""
        from noiseprop.cli.console import out, print_json
        from noiseprop.evaluation.text_summary import format_text_table
        from noiseprop.paper.cluster import on_ray
        from noiseprop.paper.figures import draw_figure_3
        from noiseprop.paper.grid import DONE, run_all
        from noiseprop.paper.how import how
        from noiseprop.paper.kept import extend, holds
        from noiseprop.paper.reproduction import finished
        from noiseprop.paper.tables import main_tables

        plan, jobs = self._plan_and_jobs()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.what == "figure4":
            self._figure_4(plan, jobs)
            return
        path = self.out / f"{plan.table}-{plan.suffix}.json"
        record, by_name = extend(path, plan, plan.finished()), {job.name: job for job in jobs}
        left = [job for job in jobs if not holds(record, job)]
        with _bars(self.what, len(jobs)) as show:

            def keep(name: str, done: int, total: int, what: str) -> None:
                if what == DONE:  # each run is worth having, also where the next one is stopped
                    extend(path, plan, [finished(by_name[name])])
                show(name, done, total, what)

            for job in jobs:
                if job not in left:
                    show(job.name, 1, 1, DONE)
            if left:
                start = None if self.ray is None else on_ray(*self.ray or ("auto",))
                run_all(left, processes=self.jobs, show=keep, start=start)
                record = extend(path, plan, [])
        if self.what == "figure3":
            svg, png = draw_figure_3(record, self.out / f"figure3-{plan.suffix}")
            out.print(how(record), markup=False)
            out.print(f"Figure 3 is in {svg} and {png}.")
        if self.json:
            print_json(record)
        if self.what == "figure3" or self.json:
            return
        for rows in main_tables(record):
            out.print(f"{format_text_table(rows)}\n", markup=False)
        out.print(how(record), markup=False)
        out.print(f"Accuracy: ours, mean ± {_over(record)} (the paper's). All is in {path}.")

    def _figure_4(self, plan: "Plan", jobs: "list[Job]") -> None:
        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.paper.figure4 import draw_figure_4, look, summary

        with progress_bar("figure4") as progress:
            found = look(jobs, progress=progress)
        paths = draw_figure_4(found, self.out / f"figure4-{plan.suffix}")
        if self.json:
            return print_json(found.record)
        out.print(summary(found.record), markup=False)
        out.print(f"Figure 4 is in {paths[0]} and {paths[1]}, all figures in {paths[2]}.")
        return None

    def _plan_and_jobs(self) -> "tuple[Plan, list[Job]]":
        """Every run that is asked for; data that are missing are told here, before processes start."""
        from noiseprop.data import load
        from noiseprop.environment import choose_device
        from noiseprop.errors import InputError
        from noiseprop.paper.plan import Plan
        from noiseprop.paper.protocol import FIGURE_3, PROTOCOLS, RESNETS, TABLES, protocol, recipe

        table = {"figure3": "table3", "figure4": "table6"}.get(self.what, self.what)
        chosen = protocol(self.protocol, self.switch, table)
        for name, value in (("seeds", self.seeds), ("jobs", self.jobs), ("epochs", self.epochs)):
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}; give 1 or more")
        if self.test_images is not None and self.test_images < 1:
            raise InputError(f"--test-images is {self.test_images}; give 1 or more")
        if table in RESNETS and self.data != "mnist":
            raise InputError(f"--data {self.data} is for Tables 3 and 4; leave it out, {self.what} has data of its own")
        if self.what == "figure4" and self.models:
            raise InputError("figure4 shows images that all networks of Table 6 classify correctly; leave out --models")
        rows = {row.name: row for row in (FIGURE_3 if self.what == "figure3" else TABLES[table])}
        if unknown := [name for name in self.models if name not in rows]:
            raise InputError(f"{unknown[0]!r} is no row of {self.what}; choose of {'; '.join(rows)}")
        data = RESNETS.get(table, self.data)
        choose_device(self.device)
        load(data, self.data_dir)
        epochs = recipe(PROTOCOLS["paper"], data, epochs=self.epochs, name=self.recipe).epochs
        images = 1000 if table in RESNETS and self.test_images is None else self.test_images
        settings = (data, self.data_dir, epochs, self.precision, self.recipe, images, self.runs)
        plan = Plan(table, chosen, *settings, judged_in=self.judge, choose_device=self.device)
        seeds = 1 if self.what == "figure4" else self.seeds
        return plan, plan.jobs([rows[name] for name in self.models or rows], seeds)


def _over(record: "Record") -> str:
    """What stands behind the ± of a record's figures."""
    from collections import Counter

    seeds = Counter(run["row"] for run in record["runs"]).values()
    few, many = min(seeds), max(seeds)
    if many == 1:
        return "what the images of one seed leave open"
    return f"standard deviation over {many if few == many else f'{few} to {many}'} seeds"


@contextmanager
def _bars(title: str, runs: int) -> "Generator[Show]":
    """A line for each run at work and one for all, on stderr; where that is no terminal, lines now and then."""
    from noiseprop.paper.grid import DONE
    from noiseprop.progress import PlainProgress, create_progress_bars, error_console

    with create_progress_bars() as drawn:
        whole = drawn.add_task(title, note="runs", total=runs)
        tasks: dict[str, TaskID] = {}
        plain: dict[str, PlainProgress] = {}
        ended = 0

        def show(name: str, done: int, total: int, what: str) -> None:
            nonlocal ended
            if name not in tasks:
                tasks[name], plain[name] = drawn.add_task(name, note=""), PlainProgress(f"{title}: {name}")
            if what != DONE:
                drawn.update(tasks[name], completed=done, total=total, note=what)
                if not error_console.is_terminal:
                    plain[name].tell(done, total, what)
                return
            ended += 1
            drawn.remove_task(tasks[name])
            drawn.advance(whole)
            if not error_console.is_terminal:
                error_console.print(f"{title}: {name} is done, {ended} of {runs}", markup=False)

        yield show
