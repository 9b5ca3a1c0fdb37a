"""Jobs of the reproduction: everything that determines one run, and the table that it belongs to."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from noiseprop.data import Dataset, Split, load, split
from noiseprop.evaluation.evaluate import images_digest
from noiseprop.evaluation.settings import Settings
from noiseprop.paper.specs import TABLES, Protocol, RecipeName, Row, choose_recipe, choose_settings
from noiseprop.training import Precision, Recipe


@dataclass(frozen=True)
class Job:
    """One run: a network of a table with a seed, its training and its evaluation.

    Attributes:
        test_images: number of test images to evaluate on, the first ones; None for all.
        root: folder of all runs.
    """

    row: Row
    seed: int
    protocol: Protocol
    data: str
    data_dir: Path | None
    epochs: int
    precision: Precision
    settings: Settings
    root: Path
    recipe_name: RecipeName = "table1"
    test_images: int | None = None
    judged_in: Precision = "fp32"
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Return the folder of the run; recipes of different length have different folders."""
        suffix = "" if self.recipe_name == "table1" else f"-{self.recipe_name}-{self.epochs}"
        return self.root / f"{self.protocol.name}-{self.data}{suffix}" / f"{self.row.slug}-seed{self.seed}"

    @property
    def name(self) -> str:
        """Return the name of the run for progress bars."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the training."""
        return choose_recipe(
            self.protocol, self.data, epochs=self.epochs, precision=self.precision, name=self.recipe_name
        )


@dataclass(frozen=True)
class TableSpec:
    """One table under one protocol and recipe; fields as in `Job`."""

    table: str
    protocol: Protocol
    data: str
    data_dir: Path | None
    epochs: int
    precision: Precision
    recipe_name: RecipeName
    test_images: int | None
    root: Path
    judged_in: Precision = "fp32"
    device: str = "cpu"

    @property
    def suffix(self) -> str:
        """Return the end of its file names: protocol, recipe and, unless it is that of the table, data."""
        recipe = "" if self.recipe_name == "table1" else f"-{self.recipe_name}-{self.epochs}"
        return self.protocol.name + recipe + ("-mnist-5k" if self.data == "mnist-5k" else "")

    @property
    def first_job(self) -> Job:
        """Return the first run, whose recipe and data are those of all runs."""
        return self.make_job(TABLES[self.table][0], 0)

    def make_job(self, row: Row, seed: int) -> Job:
        """Return one run."""
        return Job(
            row,
            seed,
            self.protocol,
            self.data,
            self.data_dir,
            self.epochs,
            self.precision,
            choose_settings(self.protocol, self.data, self.table, row, self.recipe_name),
            self.root,
            self.recipe_name,
            self.test_images,
            self.judged_in,
            self.device,
        )

    def make_jobs(self, rows: Iterable[Row], seeds: int) -> list[Job]:
        """Return the runs of some rows, seed by seed, so that a table with one seed is complete first."""
        chosen = tuple(rows)
        return [self.make_job(row, seed) for seed in range(seeds) for row in chosen]


def load_parts(job: Job) -> Split:
    """Return the images for training and evaluation of a job."""
    return _split_dataset(job.data, job.data_dir)


def describe_test_images(job: Job) -> tuple[int, str]:
    """Return the number of test images that a job is evaluated on, and their digest."""
    return _digest_test_images(job.data, job.data_dir, job.test_images)


@cache
def load_dataset(name: str, data_dir: Path | None) -> Dataset:
    """Return a data set, read once per process."""
    return load(name, data_dir)


@cache
def _split_dataset(name: str, data_dir: Path | None) -> Split:
    return split(load_dataset(name, data_dir))


@cache
def _digest_test_images(name: str, data_dir: Path | None, images: int | None) -> tuple[int, str]:
    test = _split_dataset(name, data_dir).test[:images]
    return len(test), images_digest(test)
