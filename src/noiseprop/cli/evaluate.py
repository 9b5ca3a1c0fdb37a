"""`noiseprop evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Evaluate:
    """Judge a trained network on its test images: clean, attacked and corrupted.

    The attacks are Table 2's, their gradients averaged over 1 and over 20 draws.

    Prints a table and keeps every image's outcome in RUN/evaluation.json.

    For example:
      noiseprop evaluate runs/mlpn
      noiseprop evaluate runs/mlpn --surrogate runs/mlp-surrogate
    """

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """A folder that `noiseprop train` wrote."""
    surrogate: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(default: no attacks by transfer)")] = None
    """Run of the noise-free network on which black-box attacks are crafted."""
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $NOISEPROP_DATA, else downloaded once)")
    ] = None
    """Folder of the official files."""

    def run(self) -> None:
        """Evaluate, show progress, print the table and write the file."""
        from dataclasses import replace

        from noiseprop.cli.show import out, progress_bar
        from noiseprop.data import load, split
        from noiseprop.errors import RunError
        from noiseprop.evaluation.settings import TRANSFERS, known_settings
        from noiseprop.evaluation.storage import write
        from noiseprop.evaluation.suite import evaluate
        from noiseprop.evaluation.summary import summary
        from noiseprop.paper.runs import load_run

        model, settings = load_run(self.run_dir)
        surrogate = load_run(self.surrogate) if self.surrogate else None
        data = settings["data"]
        if surrogate and surrogate[1]["data"] != data:
            raise RunError(f"{self.surrogate} was trained on other data than {self.run_dir}; choose another surrogate")
        test = split(load(data["name"], self.data_dir), seed=data["split_seed"]).test
        chosen = known_settings(data["name"])
        if surrogate is None:
            chosen = replace(chosen, conditions=tuple(c for c in chosen.conditions if c not in TRANSFERS))
        about = {
            "model": settings["model"]["name"],
            "activation": settings["model"]["activation"],
            "seed": settings["seed"],
            "recipe": settings["recipe"]["name"],
            "epochs": settings["recipe"]["epochs"],
        }
        with progress_bar(f"judging {self.run_dir}") as progress:
            evaluation = evaluate(
                model,
                test,
                settings=chosen,
                surrogate=surrogate[0] if surrogate else None,
                about=about,
                progress=progress,
            )
        write(evaluation, self.run_dir / "evaluation.json")
        out.print(summary(evaluation), markup=False)
        if surrogate is None:
            out.print("No attacks by transfer: they need --surrogate.")
        out.print(f"Kept in {self.run_dir / 'evaluation.json'}.")
