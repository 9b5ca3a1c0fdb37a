"""`noiseprop train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from noiseprop.cli.options import DataDir, Device, Flag, Granularity, Json, default

if TYPE_CHECKING:
    from noiseprop.data import Dataset
    from noiseprop.training import Epoch


@dataclass(frozen=True)
class Train:
    """Train a network, and with it the noise of its neurons.

    The settings are Table 1's. Ctrl-C stops, --resume goes on. For example:
      noiseprop train --model MLPN --data mnist-5k --out runs/mlpn
      noiseprop train --model mynets:small --noise all --data photos/ --out runs/x
      torchrun --nproc-per-node 2 -m noiseprop train --model MLPN --out runs/mlpn
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """The run's folder."""
    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(required, but to resume)")] = None
    """MLP, MLP+, MLPN (noise none, fixed, learned); CNN, CNN-MLP+, CNN-A+, CNN-MLPN, CNN-AN (MLP: on Linear layers, \
A: everywhere); ResNet18 or ResNet34, as CNN; MLP-, ResNet18- or ResNet34-surrogate; or module:function, yours."""
    noise: Annotated[tuple[str, ...], default("none", "WHERE ...")] = ()
    """In yours: all, linear, conv, name."""
    granularity: Annotated[Granularity | None, default("neuron", "UNIT")] = None
    """Per neuron, channel or layer."""
    init: Annotated[float | Literal["normal"] | None, default("1.0", "SIGMA")] = None
    """Sigma's start; normal: N(0, 1)."""
    fixed_noise: Flag = False
    """Sigma stays what it starts at."""
    data: Annotated[str | None, default("mnist", "NAME")] = None
    """mnist, mnist-5k (no download), cifar10, tiny-imagenet; or yours: folder of class folders, or .npz."""
    data_dir: DataDir = None
    """Folder of the official files."""
    epochs: Annotated[int | None, default("Table 1's", "INT")] = None
    """Passes over the images."""
    seed: Annotated[int | None, default("0", "INT")] = None
    """Of weights, noise and order."""
    activation: Annotated[Literal["relu", "sigmoid"] | None, default("relu", "NAME")] = None
    """relu or sigmoid, in the MLP."""
    precision: Annotated[Literal["fp32", "bf16"] | None, default("fp32", "NAME")] = None
    """fp32, or bf16: quick with AMX."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1 or the like."""
    objective: Annotated[Literal["floor", "power", "entropy", "square-root"] | None, default("none", "NAME")] = None
    """Keeps noise alive by a least sigma (floor), sum of sigma^2 (power), bonus (entropy, square-root)."""
    objective_number: Annotated[float | None, default("its own", "FLOAT")] = None
    """Of --objective."""
    resume: Flag = False
    """Go on with what is in --out, if anything is."""
    tensorboard: Annotated[Path | None, default("none", "DIR")] = None
    """Events for TensorBoard."""
    json: Json = False
    """Print the last epoch as JSON."""

    def run(self) -> None:
        """Train, show progress, and say what came of it; of several processes, in the first."""
        from noiseprop.cli.console import err, out
        from noiseprop.distributed import joined

        with joined() as world:
            out.quiet = err.quiet = not world.first
            self._train()

    def _train(self) -> None:
        from functools import partial

        from noiseprop.cli.console import progress_bar
        from noiseprop.data import load
        from noiseprop.environment import device
        from noiseprop.runs.trained_model import train_run
        from noiseprop.training import Recipe
        from noiseprop.training.objective_config import named_objective
        from noiseprop.training.run_folder import refuse_taken
        from noiseprop.training.tensorboard import tensorboard

        where = device(self.device)
        # Wrong names, a folder in use and other settings than the run's are told before data are read.
        there = refuse_taken(self.out, resume=self.resume)
        settings = self._settings_of_the_run() if there else self._settings_of_a_new_run()
        model, data = settings["model"], settings["data"]
        name, number = self._objective(settings)
        dataset = load(data.get("path", data["name"]), self.data_dir)
        title = f"{model['name']} on {data['name']}"
        with tensorboard(self.tensorboard) as at_epoch_end, progress_bar(title) as progress:
            _, epochs = train_run(
                model["name"],
                dataset,
                Recipe.from_json(settings["recipe"]),
                self.out,
                seed=settings["seed"],
                objective=None if name is None else partial(named_objective, name, number),
                resume=self.resume,
                progress=progress,
                at_epoch_end=at_epoch_end,
                device=where,
                **{key: value for key, value in model.items() if key not in ("name", "seed", "classes", "image")},
            )
        self._tell(model["name"], dataset, settings["recipe"]["name"], epochs[-1])

    def _tell(self, model: str, dataset: "Dataset", recipe: str, last: "Epoch") -> None:
        """Print what it learned from, what came of it, and by which recipe where it is not Table 1's."""
        from dataclasses import asdict

        from noiseprop.cli.console import out, print_json

        if self.json:
            return print_json(
                {"run": str(self.out), "model": model, "data": dataset.name, "recipe": recipe, **asdict(last)}
            )
        by = "" if recipe == "table1" else f" by the {recipe} recipe"
        out.print(f"{dataset.source}.", markup=False, soft_wrap=False)
        out.print(f"{model} on {dataset.name}{by}, epoch {last.epoch}:", markup=False)
        out.print(f"  training    loss {last.train_loss:.4f}  accuracy {last.train_accuracy:.4f}")
        out.print(f"  validation  loss {last.validation_loss:.4f}  accuracy {last.validation_accuracy:.4f}")
        for layer, sigma in last.sigma.items():
            spread = f"(from {sigma['min']:.3f} to {sigma['max']:.3f})"
            out.print(f"  |sigma| of {layer.removesuffix('.noise')}: mean {sigma['mean']:.3f} {spread}")
        trust = f" --model {model}" if ":" in model else ""
        out.print(f"Kept in {self.out}. Next: noiseprop evaluate {self.out}{trust}", markup=False)
        return None

    def _settings_of_a_new_run(self) -> dict[str, Any]:
        """What is asked for, in the form of config.json; defaults for the rest."""
        from dataclasses import asdict

        from noiseprop.errors import InputError
        from noiseprop.models.registry import architecture
        from noiseprop.models.user_model import is_own
        from noiseprop.training.recipes import table_1

        if self.model is None:
            raise InputError("train needs a network's name, --model NAME, or --resume and the folder of a run")
        if not is_own(self.model):
            architecture(self.model)
        data = self._data() or {"name": "mnist"}
        model = {"name": self.model, **({} if is_own(self.model) else {"activation": "relu"})}
        return self._override({"model": model, "data": data, "recipe": asdict(table_1(data["name"])), "seed": 0})

    def _data(self) -> dict[str, Any]:
        """What config.json says of the data that are asked for: their name and, of the user's own, their path."""
        from noiseprop.data.load import own_data

        if self.data is None:
            return {}
        own = own_data(self.data)
        return {"name": self.data} if own is None else {"name": own[0], "path": str(own[1])}

    def _settings_of_the_run(self) -> dict[str, Any]:
        """Those of the run in the folder, with as many epochs as are asked for; other conflicts are refused."""
        from noiseprop.models.user_model import is_own
        from noiseprop.runs.trained_model import read_settings, refuse_untrusted
        from noiseprop.training.resume import continued

        there = read_settings(self.out)
        if is_own(there["model"]["name"]) and self.model is None:
            refuse_untrusted(self.out, there["model"]["name"], ())
        return continued(self.out, there, self._override(there))

    def _override(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with what was given on the command line in their place."""
        from noiseprop.errors import InputError

        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be at least 0 and below 2**63, got {self.seed}")
        given = {
            "model": {"name": self.model, "seed": self.seed, **self._options(settings["model"]["name"])},
            "data": self._data(),
            "recipe": {"epochs": self.epochs, "precision": self.precision},
        }
        asked = {
            part: {**settings[part], **{key: value for key, value in values.items() if value is not None}}
            for part, values in given.items()
        }
        return {**settings, **asked, "seed": settings["seed"] if self.seed is None else self.seed}

    def _options(self, name: str) -> dict[str, Any]:
        """The network's options that are given; others than it can have are refused."""
        from noiseprop.errors import InputError
        from noiseprop.models.user_model import is_own

        name = self.model or name
        noise: dict[str, Any] = {
            "noise": list(self.noise) or None,
            "granularity": self.granularity,
            "init": self.init,
            "learn": False if self.fixed_noise else None,
        }
        if not is_own(name) and any(value is not None for value in noise.values()):
            raise InputError(f"{name} has its noise by its name; --noise and its options are for module:function")
        if is_own(name) and self.activation is not None:
            raise InputError(f"--activation is for the paper's MLP, not for {name}; leave it out")
        if not self.noise and not self.resume and any(value is not None for value in noise.values()):
            raise InputError(
                "--granularity, --init and --fixed-noise belong to --noise; say where to add noise with it"
            )
        return noise if is_own(name) else {"activation": self.activation}

    def _objective(self, settings: dict[str, Any]) -> tuple[Any, float | None]:
        """The objective's name and number: the given ones, else the run's, else none; `train` refuses another one."""
        from noiseprop.errors import InputError
        from noiseprop.training.objective_config import name_and_number

        if self.objective is None and self.objective_number is not None:
            raise InputError("--objective-number belongs to an objective; name it with --objective")
        kept = name_and_number(settings["objective"]) if settings.get("objective") else (None, None)
        if self.objective is None:
            return kept
        return self.objective, kept[1] if self.objective_number is None else self.objective_number
