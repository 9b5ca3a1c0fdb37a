"""`noiseprop evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from noiseprop.cli.options import DataDir, Device, Json, OwnData, RunFolder, Trusted, describe_default

if TYPE_CHECKING:
    import torch
    from torch import nn

    from noiseprop.evaluation.settings import Settings
    from noiseprop.training.run_config import RunSettings


_DIGITS = ("mnist", "mnist-5k")


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a network on clean, attacked and corrupted images.

    Uses Table 2's attacks; writes RUN/evaluation.json. For example:
      noiseprop evaluate runs/mlpn
      noiseprop evaluate runs/x --model mynets:small --surrogate runs/plain
      torchrun --nproc-per-node 2 -m noiseprop evaluate runs/mlpn
    """

    run_dir: RunFolder
    """Folder that `noiseprop train` wrote."""
    surrogate: Annotated[Path | None, describe_default("trained once on digits, else none", "RUN")] = None
    """Noise-free network that crafts black-box attacks."""
    model: Trusted = ()
    """module:function of your network; runs its code."""
    data: OwnData = None
    """New path of your data."""
    data_dir: DataDir = None
    """Folder of the official files."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1 or the like."""
    json: Json = False
    """Print the figures as JSON."""

    def run(self) -> None:
        """Evaluate, show progress, print the table and write the file; only the first of several processes prints."""
        from contextlib import nullcontext

        from noiseprop.cli.console import error_console, out
        from noiseprop.distributed import join_processes
        from noiseprop.runs.trained_model import read_run_settings
        from noiseprop.training.run_folder import lock_run

        read_run_settings(self.run_dir)  # so that only a run folder is locked
        with join_processes() as world:
            out.quiet = error_console.quiet = not world.is_first
            with lock_run(self.run_dir, resume=True) if world.is_first else nullcontext():
                self._evaluate_run(writes=world.is_first)

    def _evaluate_run(self, *, writes: bool) -> None:
        from dataclasses import replace

        import msgspec

        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.data import SPLIT_SEED
        from noiseprop.environment import choose_device
        from noiseprop.errors import RunError
        from noiseprop.evaluation.evaluate import evaluate
        from noiseprop.evaluation.serialization import write_evaluation
        from noiseprop.evaluation.settings import TRANSFERS, choose_settings
        from noiseprop.evaluation.text_summary import format_summary, summary_figures
        from noiseprop.runs.trained_model import is_same_data, load_run, load_run_data
        from noiseprop.training import TABLE_1

        device = choose_device(self.device)
        model, settings = load_run(self.run_dir, self.model)
        surrogate = load_run(self.surrogate, self.model) if self.surrogate else None
        data = settings.data
        digits = data.name in _DIGITS and data.split_seed == SPLIT_SEED
        if surrogate and not is_same_data(surrogate[1].data, data):
            raise RunError(
                f"{self.surrogate} was trained on different data from {self.run_dir}; choose another surrogate"
            )
        test = load_run_data(self.run_dir, settings, self.data_dir, self.data).test
        chosen = choose_settings(data.name, tuple(test.images.shape[1:]), own=bool(test.path))
        if surrogate is None and not digits:
            chosen = replace(chosen, conditions=tuple(c for c in chosen.conditions if c not in TRANSFERS))
        about = _describe_trained_run(self.run_dir, settings)
        if self.surrogate and surrogate:
            about["surrogate"] = "{model}, seed {seed}, {epochs} epochs".format(
                **_describe_trained_run(self.surrogate, surrogate[1])
            )
        elif digits:
            about["surrogate"] = f"MLP-surrogate, seed 0, {TABLE_1[data.name].epochs} epochs"
        target = self.run_dir / "evaluation.json"
        if writes:
            _check_target(target, chosen, about)
        net = surrogate[0] if surrogate else _load_digit_surrogate(data.name, self.data_dir, device) if digits else None
        partial = self.run_dir / "evaluation.partial.jsonl"
        with progress_bar(f"evaluating {self.run_dir}") as progress:
            evaluation = evaluate(
                model.to(device),
                test,
                settings=chosen,
                surrogate=None if net is None else net.to(device),
                about=about,
                checkpoint=partial,
                progress=progress,
            )
        if not writes:
            return
        # Print before writing, so that a full disk does not lose the result; the notes are wrapped between words.
        if self.json:
            print_json(msgspec.to_builtins(summary_figures(evaluation)) | {"saved_in": str(target)})
        else:
            out.print(format_summary(evaluation), markup=False, soft_wrap=False)
            if net is None:
                out.print("No transfer attacks: they require --surrogate.")
        write_evaluation(evaluation, target)
        partial.unlink(missing_ok=True)
        if not self.json:
            out.print(f"Saved in {target}.", markup=False)


def _load_digit_surrogate(data: str, data_dir: Path | None, device: "torch.device") -> "nn.Module":
    """Return the network for transfer attacks on digits; the first call trains and saves it, in a minute."""
    from noiseprop.cli.console import progress_bar
    from noiseprop.data import load
    from noiseprop.distributed import act_alone
    from noiseprop.runs.surrogates import load_surrogate

    # One process trains and the others wait and read, so that the number of processes does not change the result.
    with act_alone(), progress_bar("training the surrogate, once") as progress:
        return load_surrogate(load(data, data_dir), progress=progress, device=device)


def _describe_trained_run(run_dir: Path, settings: "RunSettings") -> dict[str, Any]:
    """Return the description of a run that an evaluation records."""
    from noiseprop.training.checkpoint import MODEL, read_epoch

    return {
        "model": settings.model.name,
        "activation": getattr(settings.model, "activation", None),
        "seed": settings.seed,
        "recipe": settings.recipe.name,
        "epochs": read_epoch(run_dir / MODEL),
    }


def _check_target(target: Path, settings: "Settings", about: dict[str, Any]) -> None:
    """Check that the target can be written and that the new evaluation covers all that it records.

    A repeated evaluation, one that measured less, or one of an earlier epoch may be replaced.
    """
    from dataclasses import asdict

    from noiseprop.errors import RunError
    from noiseprop.evaluation.serialization import is_other_file, read_evaluation
    from noiseprop.files.atomic import check_writable

    check_writable(target)
    if not target.exists():
        return
    try:
        previous = read_evaluation(target)
    except RunError:
        if is_other_file(target):
            raise RunError(
                f"{target} was not written by `noiseprop evaluate` and would be lost; move it elsewhere"
            ) from None
        return  # damaged, so nothing of value is lost
    new, old = asdict(settings), asdict(previous.settings)
    lost = [condition for condition in old.pop("conditions") if condition not in new["conditions"]]
    other = [f"{key} {value}" for key, value in old.items() if new[key] != value]
    other += [f"{key} {value}" for key, value in previous.about.items() if key != "epochs" and about.get(key) != value]
    if lost or other:
        recorded = ", ".join([*other, *lost])
        raise RunError(
            f"{target} records {recorded}, which would be lost; move it elsewhere, or evaluate with the same settings"
        )
