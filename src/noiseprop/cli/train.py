"""`noiseprop train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from noiseprop.cli.options import DataDir, Device, Flag, GranularityName, Json, check_initial_sigma, describe_default

if TYPE_CHECKING:
    from noiseprop.data import Dataset
    from noiseprop.training import Epoch, Recipe
    from noiseprop.training.objective_config import ObjectiveName
    from noiseprop.training.run_config import ObjectiveConfig, RunSettings


@dataclass(frozen=True)
class TrainingRequest:
    """Training that a command line asks for.

    Attributes:
        model: name of the network.
        options: arguments of `build` or `make_user_model`.
        data: name or path of the data.
        recipe: settings of the training.
        seed: seed of weights, noise and order.
        objective: name and number of the objective, or None.
    """

    model: str
    options: dict[str, Any]
    data: str
    recipe: "Recipe"
    seed: int
    objective: "tuple[ObjectiveName | None, float | None]"


@dataclass(frozen=True)
class Train:
    """Train a network together with the noise of its neurons.

    Uses Table 1's settings. Ctrl-C stops, --resume continues. For example:
      noiseprop train --model MLPN --data mnist-5k --out runs/mlpn
      noiseprop train --model mynets:small --noise all --data photos/ --out runs/x
      torchrun --nproc-per-node 2 -m noiseprop train --model MLPN --out runs/mlpn
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """Run folder."""
    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(required unless resuming)")] = None
    """MLP, MLP+, MLPN (noise none, fixed, learned); CNN, CNN-MLP+, CNN-A+, CNN-MLPN, CNN-AN (MLP: on Linear layers, \
A: everywhere); ResNet18 or ResNet34, as CNN; MLP-, ResNet18- or ResNet34-surrogate; or your module:function."""
    noise: Annotated[tuple[str, ...], describe_default("none", "WHERE ...")] = ()
    """For yours: all, linear, conv, name."""
    granularity: Annotated[GranularityName | None, describe_default("neuron", "UNIT")] = None
    """Per neuron, channel or layer."""
    init: Annotated[float | Literal["normal"] | None, describe_default("1.0", "SIGMA")] = None
    """Initial sigma; normal: N(0, 1)."""
    fixed_noise: Flag = False
    """Keep sigma at its initial value."""
    data: Annotated[str | None, describe_default("mnist", "NAME")] = None
    """mnist, mnist-5k (no download), cifar10, tiny-imagenet; or yours: folder of class folders, or .npz."""
    data_dir: DataDir = None
    """Folder of the official files."""
    epochs: Annotated[int | None, describe_default("Table 1's", "INT")] = None
    """Passes over the images."""
    lr: Annotated[float | None, describe_default("Table 1's", "FLOAT")] = None
    """Learning rate of the weights."""
    sigma_lr: Annotated[float | None, describe_default("Table 1's", "FLOAT")] = None
    """Learning rate of sigma."""
    batch_size: Annotated[int | None, describe_default("Table 1's", "INT")] = None
    """Images per step."""
    weight_decay: Annotated[float | None, describe_default("Table 1's", "FLOAT")] = None
    """L2 penalty on weights."""
    optimizer: Annotated[Literal["adam", "sgd"] | None, describe_default("Table 1's", "NAME")] = None
    """adam, or sgd (momentum 0.9)."""
    schedule: Annotated[Literal["constant", "steps", "one-cycle"] | None, describe_default("Table 1's", "NAME")] = None
    """constant, steps or one-cycle."""
    seed: Annotated[int | None, describe_default("0", "INT")] = None
    """For weights, noise and order."""
    activation: Annotated[Literal["relu", "sigmoid"] | None, describe_default("relu", "NAME")] = None
    """relu or sigmoid, in the MLP."""
    precision: Annotated[Literal["fp32", "bf16"] | None, describe_default("fp32", "NAME")] = None
    """fp32, or bf16 (fast with AMX)."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1 or the like."""
    objective: Annotated[
        Literal["floor", "power", "entropy", "square-root"] | None, describe_default("none", "NAME")
    ] = None
    """Keeps the noise from collapsing to zero: floor (minimum sigma), power (sum of sigma^2), entropy or square-root \
(bonus)."""
    objective_number: Annotated[float | None, describe_default("by objective", "FLOAT")] = None
    """Its strength."""
    resume: Flag = False
    """Continue the run in --out, if any."""
    tensorboard: Annotated[Path | None, describe_default("none", "DIR")] = None
    """Write TensorBoard events."""
    json: Json = False
    """Print the last epoch as JSON."""

    def run(self) -> None:
        """Train, show progress, and print the result; only the first of several processes prints."""
        from noiseprop.cli.console import error_console, out
        from noiseprop.distributed import join_processes

        with join_processes() as world:
            out.quiet = error_console.quiet = not world.is_first
            self._train_network()

    def _train_network(self) -> None:
        from functools import partial

        from noiseprop.cli.console import progress_bar
        from noiseprop.data import load
        from noiseprop.environment import choose_device
        from noiseprop.runs.trained_model import train_run
        from noiseprop.training.objective_config import make_objective
        from noiseprop.training.run_folder import check_run_folder
        from noiseprop.training.tensorboard import log_to_tensorboard

        device = choose_device(self.device)
        # Wrong names, a folder in use and settings that differ from those of the run are reported before data are read.
        has_run = check_run_folder(self.out, resume=self.resume)
        request = self._read_request() if has_run else self._make_request()
        objective, number = request.objective
        dataset = load(request.data, self.data_dir)
        if dataset.path and self.batch_size is None and not has_run:
            request = _fit_batch_size(request, dataset, is_silent=self.json)
        title = f"{request.model} on {dataset.name}"
        with log_to_tensorboard(self.tensorboard) as at_epoch_end, progress_bar(title) as progress:
            _, epochs = train_run(
                request.model,
                dataset,
                request.recipe,
                self.out,
                seed=request.seed,
                objective=None if objective is None else partial(make_objective, objective, number),
                resume=self.resume,
                progress=progress,
                at_epoch_end=at_epoch_end,
                device=device,
                **request.options,
            )
        self._print_result(request.model, dataset, request.recipe.name, epochs[-1])

    def _print_result(self, model: str, dataset: "Dataset", recipe: str, last: "Epoch") -> None:
        """Print the data, the last epoch, and the recipe if it is not Table 1's."""
        import msgspec

        from noiseprop.cli.console import out, print_json

        if self.json:
            return print_json(
                {
                    "run": str(self.out),
                    "model": model,
                    "data": dataset.name,
                    "recipe": recipe,
                    **msgspec.to_builtins(last),
                }
            )
        by = "" if recipe == "table1" else f" by the {recipe} recipe"
        out.print(f"{dataset.source}.", markup=False, soft_wrap=False)
        out.print(f"{model} on {dataset.name}{by}, epoch {last.epoch}:", markup=False)
        out.print(f"  training    loss {last.train_loss:.4f}  accuracy {last.train_accuracy:.4f}")
        out.print(f"  validation  loss {last.validation_loss:.4f}  accuracy {last.validation_accuracy:.4f}")
        for layer, sigma in last.sigma.items():
            spread = f"(from {sigma.min:.3f} to {sigma.max:.3f})"
            out.print(f"  |sigma| of {layer.removesuffix('.noise')}: mean {sigma.mean:.3f} {spread}")
        trust = f" --model {model}" if ":" in model else ""
        out.print(f"Saved in {self.out}. Next: noiseprop evaluate {self.out}{trust}", markup=False)
        return None

    def _make_request(self) -> TrainingRequest:
        """Return the requested training of a new run, with defaults for the rest."""
        from dataclasses import replace

        from noiseprop.errors import InputError
        from noiseprop.models.registry import get_architecture
        from noiseprop.models.user_model import is_user_model
        from noiseprop.training.recipes import get_table_1_recipe

        if self.model is None:
            raise InputError("train requires the name of a network, --model NAME, or --resume and the folder of a run")
        if not is_user_model(self.model):
            get_architecture(self.model)
        self._check_seed()
        data, path = self._resolve_data() or ("mnist", "")
        recipe = replace(get_table_1_recipe(data), **self._get_recipe_changes())
        if any(value is not None for value in self._get_optimization_options().values()):
            momentum = recipe.momentum if self.optimizer is None else 0.9 if self.optimizer == "sgd" else 0.0
            recipe = replace(recipe, name="custom", momentum=momentum)
        seed = 0 if self.seed is None else self.seed
        options = self._get_model_options(self.model)
        return TrainingRequest(self.model, options, path or data, recipe, seed, self._choose_objective(None))

    def _read_request(self) -> TrainingRequest:
        """Return the training of the run in the folder, with the requested epochs; other conflicts raise an error."""
        import msgspec

        from noiseprop.models.user_model import is_user_model
        from noiseprop.runs.trained_model import check_trusted, read_run_settings
        from noiseprop.training.resume import continue_settings

        recorded = read_run_settings(self.out)
        if is_user_model(recorded.model.name) and self.model is None:
            check_trusted(self.out, recorded.model.name, ())
        settings = continue_settings(self.out, recorded, self._override_settings(recorded))
        options = {
            key: value
            for key, value in msgspec.structs.asdict(settings.model).items()
            if key not in ("name", "seed", "classes", "image")
        }
        data = settings.data.path or settings.data.name
        objective = self._choose_objective(settings.objective)
        return TrainingRequest(settings.model.name, options, data, settings.recipe, settings.seed, objective)

    def _override_settings(self, recorded: "RunSettings") -> "RunSettings":
        """Return the settings of a run with those of the command line in their place."""
        from dataclasses import replace

        from msgspec import structs

        self._check_seed()
        name = self.model or recorded.model.name
        given = {"name": self.model, "seed": self.seed, **self._get_model_options(name)}
        fields = recorded.model.__struct_fields__
        model = {key: value for key, value in given.items() if value is not None and key in fields}
        data = self._resolve_data() or (recorded.data.name, recorded.data.path)
        return structs.replace(
            recorded,
            model=structs.replace(recorded.model, **model),
            data=structs.replace(recorded.data, name=data[0], path=data[1]),
            recipe=replace(recorded.recipe, **self._get_recipe_changes()),
            seed=recorded.seed if self.seed is None else self.seed,
        )

    def _check_seed(self) -> None:
        from noiseprop.errors import InputError

        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be at least 0 and below 2**63, got {self.seed}")

    def _resolve_data(self) -> tuple[str, str] | None:
        """Return the name of the requested data and, for user data, their path; None if none are requested."""
        from noiseprop.data.load import resolve_user_data

        if self.data is None:
            return None
        found = resolve_user_data(self.data)
        return (self.data, "") if found is None else (found[0], str(found[1]))

    def _get_recipe_changes(self) -> dict[str, Any]:
        given = {"epochs": self.epochs, "precision": self.precision, **self._get_optimization_options()}
        return {key: value for key, value in given.items() if value is not None}

    def _get_optimization_options(self) -> dict[str, Any]:
        """Return the options whose change makes a recipe of another name than Table 1's."""
        names = ("lr", "sigma_lr", "batch_size", "weight_decay", "optimizer", "schedule")
        return {name: getattr(self, name) for name in names}

    def _get_model_options(self, name: str) -> dict[str, Any]:
        """Return the given options of a network, after checking that it has them."""
        from noiseprop.errors import InputError
        from noiseprop.models.user_model import is_user_model

        noise: dict[str, Any] = {
            "noise": tuple(self.noise) or None,
            "granularity": self.granularity,
            "init": self.init,
            "learn": False if self.fixed_noise else None,
        }
        check_initial_sigma(self.init)
        given = {key: value for key, value in noise.items() if value is not None}
        if not is_user_model(name) and given:
            raise InputError(f"the name {name} fixes its noise; --noise and its options are for module:function")
        if is_user_model(name) and self.activation is not None:
            raise InputError(f"--activation is for the MLP of the paper, not for {name}; omit it")
        if not self.noise and not self.resume and given:
            raise InputError("--granularity, --init and --fixed-noise require --noise; say where to add noise with it")
        if is_user_model(name):
            return given
        return {} if self.activation is None else {"activation": self.activation}

    def _choose_objective(self, recorded: "ObjectiveConfig | None") -> "tuple[ObjectiveName | None, float | None]":
        """Return name and number of the objective: the given ones, else those of the run, else None."""
        from noiseprop.errors import InputError
        from noiseprop.training.objective_config import find_objective_name

        if self.objective is None and self.objective_number is not None:
            raise InputError("--objective-number belongs to an objective; name it with --objective")
        name, number = find_objective_name(recorded) if recorded else (None, None)
        if self.objective is None:
            return name, number
        return self.objective, number if self.objective_number is None else self.objective_number


def _fit_batch_size(request: TrainingRequest, dataset: "Dataset", *, is_silent: bool) -> TrainingRequest:
    """Return the request with batches of at least 8 images that give small data at least 10 steps per epoch."""
    from dataclasses import replace

    from noiseprop.cli.console import out
    from noiseprop.data import split

    images, size = len(split(dataset).train), request.recipe.batch_size
    while size > 8 and images < 10 * size:
        size //= 2
    if size == request.recipe.batch_size:
        return request
    if not is_silent:
        out.print(f"Batch size {size} for {images} training images; set another with --batch-size.")
    return replace(request, recipe=replace(request.recipe, batch_size=size))
