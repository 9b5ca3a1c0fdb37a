"""`noiseprop train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, arg


@dataclass(frozen=True)
class Train:
    """Train a network, and with it the noise of its neurons where it has any.

    The settings are Table 1's. Ctrl-C stops; --resume goes on.

    For example:
      noiseprop train --model MLPN --data mnist-5k --out runs/mlpn
      noiseprop train --model CNN-AN --precision bf16 --out runs/cnn-an
    """

    model: str
    """MLP, MLP+, MLPN (noise none, fixed, learned); CNN, CNN-MLP+, CNN-A+, CNN-MLPN, CNN-AN (MLP: on the Linear layers,
    A: everywhere); ResNet18 or ResNet34, as CNN; MLP-, ResNet18- or ResNet34-surrogate."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The run's folder."""
    data: str = "mnist"
    """mnist, mnist-5k (5,000 digits, no download), cifar10 or tiny-imagenet."""
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $NOISEPROP_DATA, else downloaded once)")
    ] = None
    """Folder of the official files."""
    epochs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: Table 1's)")] = None
    """Passes over the training images."""
    seed: int = 0
    """Decides the first weights, the noise and the order of the images."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Of the MLP."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster where the processor has it (AMX, AVX512-BF16)."""
    resume: Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")] = False
    """Continue the run in --out, or start it if it has no checkpoint yet."""

    def run(self) -> None:
        """Train, show progress, and say what came of it."""
        from dataclasses import replace

        from noiseprop.cli.show import out, progress_bar
        from noiseprop.data import load
        from noiseprop.errors import InputError
        from noiseprop.paper.runs import train_run
        from noiseprop.paper.variants import architecture
        from noiseprop.training import TABLE_1
        from noiseprop.training.run_folder import refuse_taken

        architecture(self.model)  # an unknown name, or a folder in use, is told before data are read
        refuse_taken(self.out, resume=self.resume)
        dataset = load(self.data, self.data_dir)
        recipe = replace(TABLE_1[self.data], precision=self.precision)
        if self.epochs is not None:
            recipe = replace(recipe, epochs=self.epochs)
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0, got {self.seed}")
        with progress_bar(f"{self.model} on {self.data}") as progress:
            _, epochs = train_run(
                self.model,
                dataset,
                recipe,
                self.out,
                seed=self.seed,
                resume=self.resume,
                progress=progress,
                activation=self.activation,
            )
        last = epochs[-1]
        out.print(f"{self.model} on {self.data}, epoch {last.epoch}:")
        out.print(f"  training    loss {last.train_loss:.4f}  accuracy {last.train_accuracy:.4f}")
        out.print(f"  validation  loss {last.validation_loss:.4f}  accuracy {last.validation_accuracy:.4f}")
        for layer, sigma in last.sigma.items():
            spread = f"(from {sigma['min']:.3f} to {sigma['max']:.3f})"
            out.print(f"  |sigma| of {layer.removesuffix('.noise')}: mean {sigma['mean']:.3f} {spread}")
        out.print(f"Kept in {self.out}. Next: noiseprop evaluate {self.out}")
