"""`noiseprop data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from noiseprop.cli.options import Flag, Json, describe_default

if TYPE_CHECKING:
    from noiseprop.data import Dataset


@dataclass(frozen=True)
class Data:
    """List the data sets and their folders, fetch and verify them.

    For example:
      noiseprop data mnist cifar10 --fetch
      noiseprop data photos/
    """

    names: Annotated[Positional[tuple[str, ...]], describe_default("all that have names", "NAMES")] = ()
    """mnist, mnist-5k, cifar10, tiny-imagenet; or yours: a folder of class folders, or a .npz file."""
    fetch: Flag = False
    """Download missing files over https, and verify them."""
    verify: Flag = False
    """Read all files and compare them with the official ones."""
    data_dir: Annotated[Path | None, describe_default("$NOISEPROP_DATA, else the user's cache", "DIR")] = None
    """Folder of the official files."""
    json: Json = False
    """Print the list as JSON."""

    def run(self) -> None:
        """Fetch and verify the requested data sets, then print a line for each."""
        from noiseprop.cli.console import error_console, out, print_json
        from noiseprop.data import NAMES
        from noiseprop.data.inventory import fetch_missing
        from noiseprop.data.load import resolve_user_data
        from noiseprop.errors import DataError, InputError

        if self.fetch and not self.names:
            raise InputError(f"--fetch requires the names of data sets; choose from {', '.join(NAMES)}")
        names = self.names or NAMES
        known = {name: resolve_user_data(name) is None for name in names}  # wrong names raise before a download
        rows: list[dict[str, Any]] = []
        for name in names:
            if self.fetch and known[name]:
                fetch_missing(name, self.data_dir)
            rows.append(self._find_data_set(name, known=known[name]))
        if self.json:
            print_json(rows)
        else:
            for row in rows:
                size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] else ""
                out.print(f"{row['name']:<14} {row['state']:<12} {size:>10}  {row['where']}", markup=False)
                if row["note"]:
                    out.print(f"{'':14} {row['note']}", markup=False)
        damaged = [row["name"] for row in rows if row["state"] == "damaged"]
        if damaged:
            error_console.quiet = False
            raise DataError(f"{', '.join(damaged)} cannot be used; see above")

    def _find_data_set(self, name: str, *, known: bool) -> dict[str, Any]:
        """Return one data set's row of the list."""
        from noiseprop.data import load
        from noiseprop.data.inventory import find_files
        from noiseprop.data.load import resolve_user_data
        from noiseprop.errors import DataError

        row: dict[str, Any] = {"name": name, "state": "here", "bytes": 0, "where": "", "note": ""}
        if known:
            found = find_files(name, self.data_dir)
            row |= {"bytes": found.size, "where": str(found.where)}
            if found.damage:
                return row | {"state": "damaged", "note": found.damage}
            if not found.is_complete:
                return row | {"state": "missing", "note": _how_to_get(name, sum(r.size for r in found.missing))}
        else:
            user_data = resolve_user_data(name)
            row["where"] = str(user_data[1]) if user_data else ""
        if not (self.fetch or self.verify) and known:
            return row
        try:
            data = load(name, self.data_dir)
        except DataError as error:
            return row | {"state": "damaged", "note": str(error)}
        return row | {"state": _classify_data(data, known=known), "note": data.source, **_describe_images(data)}


def _describe_images(data: "Dataset") -> dict[str, Any]:
    return {"images": len(data), "shape": list(data.images.shape[1:]), "classes": len(data.classes)}


def _classify_data(data: "Dataset", *, known: bool) -> str:
    """Return the state of a data set that was read: readable, unofficial or verified."""
    if not known:
        return "readable"
    return "unofficial" if data.is_official is False else "verified"


def _how_to_get(name: str, size: int) -> str:
    if name == "mnist-5k":
        return "it comes with the extra demo: pip install noiseprop[demo]"
    return f"noiseprop data {name} --fetch downloads {size / 1e6:,.0f} MB"
