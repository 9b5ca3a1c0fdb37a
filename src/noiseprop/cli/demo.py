"""`noiseprop demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class Demo:
    """Train, attack and compare three networks: no, fixed and learned noise.

    MLP, MLP+ and MLPN on 5,000 real MNIST digits, with the paper's settings.

    Takes about a minute on 2 cores and no network. Prints a table; draws a picture.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Where to put demo.png and demo.json; an earlier demo there is replaced."""

    def run(self) -> None:
        """Run, show progress, print the table and say where the picture is."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        from noiseprop.cli.show import out, progress_bar
        from noiseprop.paper.demo import run_demo
        from noiseprop.paper.demo_picture import draw
        from noiseprop.paper.demo_table import heading, notes, rows
        from noiseprop.training.run_folder import write_json

        self._refuse_to_lose()
        with progress_bar("demo", lines=True) as progress:
            record = run_demo(progress=progress)
        first, *others = heading(record)
        table = Table(first, box=SIMPLE_HEAD, pad_edge=False)
        for name in others:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows(record):
            table.add_row(*row)
        out.print(table)
        for note in notes(record):
            out.print(note, soft_wrap=False)
        write_json(self.out / "demo.json", record)
        draw(record, self.out / "demo.png")
        out.print(f"\nThe picture is in {self.out / 'demo.png'}, all figures in {self.out / 'demo.json'}.")

    def _refuse_to_lose(self) -> None:
        """Make the folder, and refuse one that cannot be written to or whose files of these names no demo wrote."""
        from noiseprop.errors import RunError
        from noiseprop.paper.demo import is_demo
        from noiseprop.training.run_folder import check_writable

        record, picture = self.out / "demo.json", self.out / "demo.png"
        if self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out} is a file, not a folder; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        for path in (record, picture):
            check_writable(path)
            if path.exists() and not is_demo(record):
                raise RunError(f"{path} was not written by a demo and would be lost; choose another --out")
