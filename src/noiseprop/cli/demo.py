"""`noiseprop demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from noiseprop.cli.options import Json

if TYPE_CHECKING:
    from noiseprop.paper.demo import DemoRecord


@dataclass(frozen=True)
class Demo:
    """Compare three networks: without, with fixed and with learned noise.

    Trains and attacks MLP, MLP+ and MLPN on 5,000 real digits, as the paper does.

    Takes about a minute on 2 cores, offline. Prints a table; draws a picture.

    For example:
      noiseprop demo --out runs/demo
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/demo")
    """Folder for demo.png and demo.json; replaces an earlier demo."""
    json: Json = False
    """Print the record, demo.json, as JSON."""

    def run(self) -> None:
        """Run, show progress, print the table and the path of the picture."""
        import msgspec

        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.files.records import write_record
        from noiseprop.paper.demo import run_demo
        from noiseprop.paper.demo_report import draw_demo

        self._refuse_to_lose()
        with progress_bar("demo", lines=True) as progress:
            record = run_demo(progress=progress)
        print_json(msgspec.to_builtins(record)) if self.json else _print_table(record)
        write_record(self.out / "demo.json", record)
        draw_demo(record, self.out / "demo.png")
        out.print(f"\nThe picture is in {self.out / 'demo.png'}, all figures in {self.out / 'demo.json'}.")

    def _refuse_to_lose(self) -> None:
        """Make the folder; check that it is writable and that a demo wrote any files of these names."""
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


def _print_table(record: "DemoRecord") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from noiseprop.cli.console import out
    from noiseprop.paper.demo_report import describe_demo, tabulate_demo

    (first, *others), *rows = tabulate_demo(record)
    table = Table(first, box=SIMPLE_HEAD, pad_edge=False)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for note in describe_demo(record):
        out.print(note, soft_wrap=False)
