"""What a reproduction is asked for: its runs, which of a table's runs are finished, and what their files are called."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from noiseprop.paper.protocol import TABLES, Protocol, RecipeName, Row, attack_settings
from noiseprop.paper.reproduction import Job, Run, finished, is_finished
from noiseprop.training import Precision


@dataclass(frozen=True)
class Plan:
    """One table under one protocol and recipe; the fields are those of `Job`."""

    table: str
    protocol: Protocol
    data: str
    data_dir: Path | None
    epochs: int
    precision: Precision
    recipe: RecipeName
    test_images: int | None
    root: Path
    judged_in: Precision = "fp32"
    device: str = "cpu"

    @property
    def suffix(self) -> str:
        """What the names of its files end in: protocol, recipe and, where it is not the table's own, data."""
        recipe = "" if self.recipe == "table1" else f"-{self.recipe}-{self.epochs}"
        return self.protocol.name + recipe + ("-mnist-5k" if self.data == "mnist-5k" else "")

    def job(self, row: Row, seed: int) -> Job:
        """One run."""
        return Job(
            row,
            seed,
            self.protocol,
            self.data,
            self.data_dir,
            self.epochs,
            self.precision,
            attack_settings(self.protocol, self.data, self.table, row, self.recipe),
            self.root,
            self.recipe,
            self.test_images,
            self.judged_in,
            self.device,
        )

    def jobs(self, rows: Iterable[Row], seeds: int) -> list[Job]:
        """The runs of some rows, seed by seed, so that a table with one seed is whole first."""
        chosen = tuple(rows)
        return [self.job(row, seed) for seed in range(seeds) for row in chosen]

    def finished(self) -> list[Run]:
        """All finished runs of the table, of whichever call: those of other rows or more seeds too."""
        found: list[Run] = []
        for row in TABLES[self.table]:
            folders = self.job(row, 0).folder.parent.glob(f"{row.slug}-seed*")
            seeds = sorted(int(number) for folder in folders if (number := folder.name.split("-seed")[1]).isdecimal())
            jobs = [self.job(row, seed) for seed in seeds]
            found += [finished(job) for job in jobs if is_finished(job)]
        return sorted(found, key=lambda run: run.job.seed)
