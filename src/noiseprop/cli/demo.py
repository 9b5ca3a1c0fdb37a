"""`noiseprop demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from noiseprop.cli.options import Json


@dataclass(frozen=True)
class Demo:
    """Compare three networks: without, with fixed and with learned noise.

    Trains and attacks MLP, MLP+ and MLPN on 5,000 real digits, as the paper does.

    Takes about a minute on 2 cores and no network. Prints a table; draws a picture.

    For example:
      noiseprop demo --out runs/demo
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Where to put demo.png and demo.json; an earlier demo there is replaced."""
    json: Json = False
    """Print the record, demo.json, as JSON."""

    def run(self) -> None:
        """Run, show progress, print the table and say where the picture is."""
        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.files.atomic import write_json
        from noiseprop.paper.demo import run_demo
        from noiseprop.paper.demo_picture import draw

        self._refuse_to_lose()
        with progress_bar("demo", lines=True) as progress:
            record = run_demo(progress=progress)
        print_json(record) if self.json else _print_table(record)
        write_json(self.out / "demo.json", record)
        draw(record, self.out / "demo.png")
        out.print(f"\nThe picture is in {self.out / 'demo.png'}, all figures in {self.out / 'demo.json'}.")

    def _refuse_to_lose(self) -> None:
        """Make the folder, and refuse one that cannot be written to or whose files of these names no demo wrote."""
        from noiseprop.errors import RunError
        from noiseprop.files.atomic import check_writable
        from noiseprop.paper.demo import is_demo

        record, picture = self.out / "demo.json", self.out / "demo.png"
        if self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out} is a file, not a folder; choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        for path in (record, picture):
            check_writable(path)
            if path.exists() and not is_demo(record):
                raise RunError(f"{path} was not written by a demo and would be lost; choose another --out")


def _print_table(record: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from noiseprop.cli.console import out
    from noiseprop.paper.demo_table import heading, notes, rows

    first, *others = heading(record)
    table = Table(first, box=SIMPLE_HEAD, pad_edge=False)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(record):
        table.add_row(*row)
    out.print(table)
    for note in notes(record):
        out.print(note, soft_wrap=False)
