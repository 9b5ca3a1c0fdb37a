"""`noiseprop reproduce`."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from noiseprop.cli.options import DataDir, Device, Json, describe_default

if TYPE_CHECKING:
    from rich.progress import TaskID

    from noiseprop.paper.grid import ShowProgress
    from noiseprop.paper.job import Job, TableSpec
    from noiseprop.paper.results import TableResult


@dataclass(frozen=True)
class Reproduce:
    """Redo a table or figure of the paper, and compare the numbers.

    Repeat the command to continue a stopped one. For example:
      noiseprop reproduce table5 --recipe fast --precision bf16 --seeds 1
    """

    what: Annotated[
        Positional[Literal["table3", "table4", "table5", "table6", "figure3", "figure4"]], arg(metavar="WHAT")
    ]
    """table3 (MLPs), table4 (CNNs), table5, table6 (ResNets), figure3, or figure4, of Table 6's first runs."""
    seeds: Annotated[int, arg(metavar="INT")] = 5
    """Networks of each kind, with seeds 0, 1, ..."""
    models: Annotated[tuple[str, ...], describe_default("all", "NAME ...")] = ()
    """Rows of the table to run, by name."""
    recipe: Annotated[Literal["table1", "fast"], arg(metavar="NAME")] = "table1"
    """table1, the paper's training, or fast."""
    epochs: Annotated[int | None, describe_default("the recipe's", "INT")] = None
    """Passes over the training images."""
    jobs: Annotated[int, arg(metavar="INT")] = 2
    """Processes that share the cores."""
    ray: Annotated[tuple[str] | tuple[()] | None, arg(metavar="[ADDRESS]", help_behavior_hint="")] = None
    """Run on this machine's Ray cluster."""
    protocol: Annotated[Literal["paper", "released-code"], arg(metavar="NAME")] = "paper"
    """paper, or released-code (its authors')."""
    switch: Annotated[tuple[str, ...], describe_default("none", "NAME ...")] = ()
    """Departures to add to paper, or take from released-code. A wrong name lists them."""
    test_images: Annotated[int | None, describe_default("all; ResNets: 1000", "INT")] = None
    """Images to test on."""
    precision: Annotated[Literal["fp32", "bf16"], arg(metavar="NAME")] = "fp32"
    """fp32, or bf16 (fast with AMX)."""
    judge: Annotated[Literal["fp32", "bf16"], arg(metavar="NAME")] = "fp32"
    """Precision of the evaluation."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1 or the like."""
    data: Annotated[Literal["mnist", "mnist-5k"], arg(metavar="NAME")] = "mnist"
    """mnist or mnist-5k, for Tables 3 and 4."""
    data_dir: DataDir = None
    """Folder of the official files."""
    runs: Annotated[Path, arg(metavar="DIR")] = Path("runs/reproduce")
    """Folder of the trained networks."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("results")
    """Folder of the results."""
    json: Json = False
    """Print the table's or figure's record as JSON."""

    def run(self) -> None:
        """Do all runs, show progress, write the result and print it."""
        import msgspec

        from noiseprop.cli.console import out, print_json
        from noiseprop.evaluation.text_summary import format_text_table
        from noiseprop.paper.figures import write_figure_3
        from noiseprop.paper.grid import DONE, run_all
        from noiseprop.paper.page import describe_settings
        from noiseprop.paper.ray_cluster import use_ray
        from noiseprop.paper.results import extend_table, read_finished_runs
        from noiseprop.paper.run_job import read_finished
        from noiseprop.paper.tables import split_accuracies

        spec, jobs = self._choose_jobs()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.what == "figure4":
            self._figure_4(spec, jobs)
            return
        path = self.out / f"{spec.table}-{spec.suffix}.json"
        record, by_name = extend_table(path, spec, read_finished_runs(spec)), {job.name: job for job in jobs}
        left = [job for job in jobs if not record.has_run(job)]
        with _show_job_progress(self.what, len(jobs)) as show_run:

            def save_run(name: str, done: int, total: int, what: str) -> None:
                if what == DONE:  # save each run, in case the next one is stopped
                    extend_table(path, spec, [read_finished(by_name[name])])
                show_run(name, done, total, what)

            for job in jobs:
                if job not in left:
                    show_run(job.name, 1, 1, DONE)
            if left:
                start = None if self.ray is None else use_ray(*self.ray or ("auto",))
                run_all(left, processes=self.jobs, show=save_run, start=start)
                record = extend_table(path, spec, [])
        if self.what == "figure3":
            svg, png = write_figure_3(record, self.out / f"figure3-{spec.suffix}")
            out.print(describe_settings(record), markup=False)
            out.print(f"Figure 3 is in {svg} and {png}.")
        if self.json:
            print_json(msgspec.to_builtins(record))
        if self.what == "figure3" or self.json:
            return
        for rows in split_accuracies(record):
            out.print(f"{format_text_table(rows)}\n", markup=False)
        out.print(describe_settings(record), markup=False)
        out.print(f"Accuracy: ours, mean ± {_describe_spread(record)} (the paper's). Saved in {path}.")

    def _figure_4(self, spec: "TableSpec", jobs: "list[Job]") -> None:
        import msgspec

        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.paper.figure4 import compute_saliency, format_saliency, write_figure_4

        with progress_bar("figure4") as progress:
            found = compute_saliency(jobs, progress=progress)
        paths = write_figure_4(found, self.out / f"figure4-{spec.suffix}")
        if self.json:
            return print_json(msgspec.to_builtins(found.record))
        out.print(format_saliency(found.record), markup=False)
        out.print(f"Figure 4 is in {paths[0]} and {paths[1]}, all figures in {paths[2]}.")
        return None

    def _choose_jobs(self) -> "tuple[TableSpec, list[Job]]":
        """Return the requested runs, after checking the options and the data before processes start."""
        from noiseprop.data import load
        from noiseprop.environment import choose_device
        from noiseprop.errors import InputError
        from noiseprop.paper.job import TableSpec
        from noiseprop.paper.specs import FIGURE_3, PROTOCOLS, RESNETS, TABLES, choose_protocol, choose_recipe

        table = {"figure3": "table3", "figure4": "table6"}.get(self.what, self.what)
        chosen = choose_protocol(self.protocol, self.switch, table)
        for name, value in (("seeds", self.seeds), ("jobs", self.jobs), ("epochs", self.epochs)):
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}; give 1 or more")
        if self.test_images is not None and self.test_images < 1:
            raise InputError(f"--test-images is {self.test_images}; give 1 or more")
        if table in RESNETS and self.data != "mnist":
            raise InputError(f"--data {self.data} is for Tables 3 and 4; omit it, {self.what} has fixed data")
        if self.what == "figure4" and self.models:
            raise InputError("figure4 shows images that all networks of Table 6 classify correctly; omit --models")
        rows = {row.name: row for row in (FIGURE_3 if self.what == "figure3" else TABLES[table])}
        if unknown := [name for name in self.models if name not in rows]:
            raise InputError(f"{unknown[0]!r} is not a row of {self.what}; choose one of {'; '.join(rows)}")
        data = RESNETS.get(table, self.data)
        choose_device(self.device)
        load(data, self.data_dir)
        epochs = choose_recipe(PROTOCOLS["paper"], data, epochs=self.epochs, name=self.recipe).epochs
        images = 1000 if table in RESNETS and self.test_images is None else self.test_images
        settings = (data, self.data_dir, epochs, self.precision, self.recipe, images, self.runs)
        spec = TableSpec(table, chosen, *settings, judged_in=self.judge, device=self.device)
        seeds = 1 if self.what == "figure4" else self.seeds
        return spec, spec.make_jobs([rows[name] for name in self.models or rows], seeds)


def _describe_spread(record: "TableResult") -> str:
    """Describe the meaning of ± in a record's figures."""
    from collections import Counter

    seeds = Counter(run.row for run in record.runs).values()
    few, many = min(seeds), max(seeds)
    if many == 1:
        return "uncertainty from the images of one seed"
    return f"standard deviation over {many if few == many else f'{few} to {many}'} seeds"


@contextmanager
def _show_job_progress(title: str, runs: int) -> "Generator[ShowProgress]":
    """Draw a progress bar per active run and one for all on stderr; without a terminal, print lines at intervals."""
    from noiseprop.paper.grid import DONE
    from noiseprop.progress import PlainProgress, create_progress_bars, error_console

    with create_progress_bars() as drawn:
        whole = drawn.add_task(title, note="runs", total=runs)
        tasks: dict[str, TaskID] = {}
        plain: dict[str, PlainProgress] = {}
        ended = 0

        def show_run(name: str, done: int, total: int, what: str) -> None:
            nonlocal ended
            if name not in tasks:
                tasks[name], plain[name] = drawn.add_task(name, note=""), PlainProgress(f"{title}: {name}")
            if what != DONE:
                drawn.update(tasks[name], completed=done, total=total, note=what)
                if not error_console.is_terminal:
                    plain[name].print_line(done, total, what)
                return
            ended += 1
            drawn.remove_task(tasks[name])
            drawn.advance(whole)
            if not error_console.is_terminal:
                error_console.print(f"{title}: {name} is done, {ended} of {runs}", markup=False)

        yield show_run
