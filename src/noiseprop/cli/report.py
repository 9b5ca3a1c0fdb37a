"""`noiseprop report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from noiseprop.cli.options import DataDir, OwnData, Trusted, describe_default

if TYPE_CHECKING:
    from torch import nn

    from noiseprop.data import Dataset
    from noiseprop.report.run_groups import Run


@dataclass(frozen=True)
class Report:
    """Make one HTML page of finished runs, to view and share.

    Measures accuracy against eps once, in RUN/curve.json. For example:
      noiseprop report runs/mlp runs/mlpn
      noiseprop report runs/* --out grid.html
    """

    run_dirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...")]
    """Folders that `noiseprop train` wrote."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("report.html")
    """Page; replaces an earlier one."""
    images: Annotated[int | None, describe_default("200 for grey digits, else 50", "INT")] = None
    """Test images attacked at each eps; 0: no curves."""
    model: Trusted = ()
    """module:function of your network; runs its code."""
    data: OwnData = None
    """New path of your data."""
    data_dir: DataDir = None
    """Folder of the official files."""

    def run(self) -> None:
        """Read the runs, measure their networks, write the page and print its path."""
        from functools import partial

        from noiseprop.cli.console import out, progress_bar
        from noiseprop.errors import InputError
        from noiseprop.files.atomic import check_writable
        from noiseprop.report.network_views import view_networks
        from noiseprop.report.page import check_report_path, write_report
        from noiseprop.report.run_groups import group_runs, read_run

        if not self.run_dirs:
            raise InputError("report requires run folders, such as runs/mlpn")
        if self.images is not None and self.images < 0:
            raise InputError(f"--images is {self.images}; give 0 or more")
        check_report_path(self.out)
        runs = [read_run(path) for path in dict.fromkeys(self.run_dirs)]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        check_writable(self.out)
        groups = group_runs(runs)
        surrogate_of = partial(_load_transfer_surrogate, {}, self.data_dir)
        with progress_bar("report") as progress:
            looks = view_networks(
                groups,
                data_dir=self.data_dir,
                images=self.images,
                surrogate_of=surrogate_of,
                trusted=self.model,
                own_data=self.data,
                progress=progress,
            )
        write_report(groups, looks, self.out)
        for sentence in dict.fromkeys(s for run in runs for s in (*run.troubles, *looks[run.path].troubles)):
            out.print(f"Missing: {sentence}", markup=False)
        out.print(f"The report of {len(runs)} run{'s' if len(runs) > 1 else ''} is {self.out}.", markup=False)


def _load_transfer_surrogate(
    loaded: "dict[str, nn.Module]", data_dir: Path | None, run: "Run", test: "Dataset"
) -> "nn.Module | None":
    """Return the surrogate that `evaluate` trains for digits, if the run's evaluation used it; otherwise None."""
    from noiseprop.data import load
    from noiseprop.runs.surrogates import load_surrogate
    from noiseprop.training import TABLE_1

    surrogate = run.evaluation.about.get("surrogate") if run.evaluation else None
    digits = test.name in ("mnist", "mnist-5k")
    if not digits or surrogate != f"MLP-surrogate, seed 0, {TABLE_1[test.name].epochs} epochs":
        return None
    if test.name not in loaded:
        loaded[test.name] = load_surrogate(load(test.name, data_dir))
    return loaded[test.name]
