"""`noiseprop train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg


def _default(what: str, metavar: str) -> Any:
    """How help shows an option whose default depends on the run."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {what})")


@dataclass(frozen=True)
class Train:
    """Train a network, and with it the noise of its neurons where it has any.

    The settings are Table 1's. Ctrl-C stops; --resume goes on.

    For example:
      noiseprop train --model MLPN --data mnist-5k --out runs/mlpn
      noiseprop train --resume --epochs 60 --out runs/mlpn
      torchrun --nproc-per-node 2 -m noiseprop train --model MLPN --out runs/mlpn
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """The run's folder."""
    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(required, but to resume)")] = None
    """MLP, MLP+, MLPN (noise none, fixed, learned); CNN, CNN-MLP+, CNN-A+, CNN-MLPN, CNN-AN (MLP: on the Linear layers,
    A: everywhere); ResNet18 or ResNet34, as CNN; MLP-, ResNet18- or ResNet34-surrogate."""
    data: Annotated[str | None, _default("mnist", "NAME")] = None
    """mnist, mnist-5k (5,000 digits, no download), cifar10 or tiny-imagenet."""
    data_dir: Annotated[Path | None, _default("$NOISEPROP_DATA, else downloaded once", "DIR")] = None
    """Folder of the official files."""
    epochs: Annotated[int | None, _default("Table 1's", "INT")] = None
    """Passes over the training images."""
    seed: Annotated[int | None, _default("0", "INT")] = None
    """Decides the first weights, the noise and the order of the images."""
    activation: Annotated[Literal["relu", "sigmoid"] | None, _default("relu", "{relu,sigmoid}")] = None
    """Of the MLP."""
    precision: Annotated[Literal["fp32", "bf16"] | None, _default("fp32", "{fp32,bf16}")] = None
    """bf16 is faster where the processor has it (AMX, AVX512-BF16)."""
    objective: Annotated[
        Literal["floor", "power", "entropy", "square-root"] | None,
        _default("the plain loss", "{floor,power,entropy,square-root}"),
    ] = None
    """What keeps learned noise from vanishing: a least sigma, a fixed sum of sigma^2, or a bonus."""
    objective_number: Annotated[float | None, _default("power: the start's; square-root: 1e-4", "FLOAT")] = None
    """That least sigma, that sum, or the bonus's weight."""
    resume: Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")] = False
    """Go on with the run in --out, with its settings and perhaps more epochs; begin it if nothing is there."""

    def run(self) -> None:
        """Train, show progress, and say what came of it; of several processes, in the first."""
        from noiseprop.cli.show import err, out
        from noiseprop.training.distributed import joined

        with joined() as world:
            out.quiet = err.quiet = not world.first
            self._train()

    def _train(self) -> None:
        from functools import partial

        from noiseprop.cli.show import out, progress_bar
        from noiseprop.data import load
        from noiseprop.paper.runs import train_run
        from noiseprop.training import Recipe
        from noiseprop.training.objectives import named_objective
        from noiseprop.training.run_folder import refuse_taken

        # Wrong names, a folder in use and other settings than the run's are told before data are read.
        there = refuse_taken(self.out, resume=self.resume)
        settings = self._settings_of_the_run() if there else self._settings_of_a_new_run()
        model, data = settings["model"], settings["data"]["name"]
        name, number = self._objective(settings)
        dataset = load(data, self.data_dir)
        with progress_bar(f"{model['name']} on {data}") as progress:
            _, epochs = train_run(
                model["name"],
                dataset,
                Recipe.from_json(settings["recipe"]),
                self.out,
                seed=settings["seed"],
                objective=None if name is None else partial(named_objective, name, number),
                resume=self.resume,
                progress=progress,
                **{key: value for key, value in model.items() if key not in ("name", "seed", "classes")},
            )
        last = epochs[-1]
        out.print(f"{model['name']} on {data}, epoch {last.epoch}:")
        out.print(f"  training    loss {last.train_loss:.4f}  accuracy {last.train_accuracy:.4f}")
        out.print(f"  validation  loss {last.validation_loss:.4f}  accuracy {last.validation_accuracy:.4f}")
        for layer, sigma in last.sigma.items():
            spread = f"(from {sigma['min']:.3f} to {sigma['max']:.3f})"
            out.print(f"  |sigma| of {layer.removesuffix('.noise')}: mean {sigma['mean']:.3f} {spread}")
        out.print(f"Kept in {self.out}. Next: noiseprop evaluate {self.out}")

    def _settings_of_a_new_run(self) -> dict[str, Any]:
        """What is asked for, in the form of config.json; defaults for the rest."""
        from dataclasses import asdict

        from noiseprop.errors import InputError
        from noiseprop.paper.variants import architecture
        from noiseprop.training import TABLE_1

        if self.model is None:
            raise InputError("train needs a network's name, --model NAME, or --resume and the folder of a run")
        architecture(self.model)
        data = "mnist" if self.data is None else self.data
        if data not in TABLE_1:
            raise InputError(f"{data!r} is no data set; choose one of {', '.join(TABLE_1)}")
        return self._override(
            {
                "model": {"name": self.model, "activation": "relu"},
                "data": {"name": data},
                "recipe": asdict(TABLE_1[data]),
                "seed": 0,
            }
        )

    def _settings_of_the_run(self) -> dict[str, Any]:
        """Those of the run in the folder, with as many epochs as are asked for; other conflicts are refused."""
        from noiseprop.paper.runs import read_settings
        from noiseprop.training.continuing import continued

        there = read_settings(self.out)
        return continued(self.out, there, self._override(there))

    def _override(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with what was given on the command line in their place."""
        from noiseprop.errors import InputError

        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be at least 0 and below 2**63, got {self.seed}")
        given = {
            "model": {"name": self.model, "activation": self.activation, "seed": self.seed},
            "data": {"name": self.data},
            "recipe": {"epochs": self.epochs, "precision": self.precision},
        }
        asked = {
            part: {**settings[part], **{key: value for key, value in values.items() if value is not None}}
            for part, values in given.items()
        }
        return {**settings, **asked, "seed": settings["seed"] if self.seed is None else self.seed}

    def _objective(self, settings: dict[str, Any]) -> tuple[Any, float | None]:
        """The objective's name and number: the given ones, else the run's, else none; `train` refuses another one."""
        from noiseprop.errors import InputError
        from noiseprop.training.objectives import name_and_number

        if self.objective is None and self.objective_number is not None:
            raise InputError("--objective-number belongs to an objective; name it with --objective")
        kept = name_and_number(settings["objective"]) if settings.get("objective") else (None, None)
        if self.objective is None:
            return kept
        return self.objective, kept[1] if self.objective_number is None else self.objective_number
