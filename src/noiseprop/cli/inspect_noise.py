"""`noiseprop inspect`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from noiseprop.cli.options import DataDir, Json, OwnData, Run, Trusted

_LEGEND = """Medians [10 %, 90 %]. SNR: |mean| / std of one batch's gradient. Less, more: the
share of sigmas of which the loss wants less or more, beyond 2 standard errors."""


@dataclass(frozen=True)
class Inspect:
    """Show a trained network's noise beside its signal, and its trend.

    Writes RUN/noise.png, and every neuron to RUN/noise.safetensors. For example:
      noiseprop inspect runs/mlpn
    """

    run_dir: Run
    """A folder that `noiseprop train` wrote."""
    batches: Annotated[int, arg(metavar="INT")] = 64
    """Batches of images to measure gradients on."""
    model: Trusted = ()
    """module:function of a run of yours; its code is run."""
    data: OwnData = None
    """Where data of your own are now."""
    data_dir: DataDir = None
    """Folder of the official files."""
    json: Json = False
    """Print the table as JSON: of each layer the deciles 1, 5 and 9."""

    def run(self) -> None:
        """Measure, print the table, write the files and say where they are."""
        from itertools import islice

        import torch

        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.data import batches
        from noiseprop.errors import InputError, RunError
        from noiseprop.noise.attach.add_noise import is_noisy
        from noiseprop.noise.diagnostics.inspect_noise import inspect_noise
        from noiseprop.report.noise_table import draw, figures, save, table
        from noiseprop.runs.trained_model import load_run, load_run_data

        if self.batches < 2:
            raise InputError(f"--batches must be at least 2, got {self.batches}")
        model, settings = load_run(self.run_dir, self.model)
        if not is_noisy(model):
            raise RunError(f"{self.run_dir} holds {settings.model.name}, which has no noise; choose a noisy run")
        data, size = settings.data, settings.recipe.batch_size
        images = load_run_data(self.run_dir, settings, self.data_dir, self.data).train
        size = min(size, len(images))
        generator = torch.Generator().manual_seed(0)

        with progress_bar(f"inspecting {self.run_dir}") as progress:

            def endless():
                while True:
                    yield from batches(images, size, generator=generator, drop_last=True)

            def told():
                for done, batch in enumerate(islice(endless(), self.batches)):
                    progress(done, self.batches, "batches")
                    yield batch

            layers = inspect_noise(model, told())
        title = f"{settings.model.name} on {data.name}: {self.batches} batches of {size}"
        picture, neurons = self.run_dir / "noise.png", self.run_dir / "noise.safetensors"
        draw(layers, picture, title=title)
        save(layers, neurons)
        if self.json:
            found = {"model": settings.model.name, "data": data.name, "batches": self.batches}
            found |= {"batch_size": size, "layers": figures(layers), "picture": str(picture), "neurons": str(neurons)}
            print_json(found)
            return
        out.print(table(layers), markup=False)
        out.print(_LEGEND, markup=False)
        out.print(f"The picture is in {picture}, every neuron in {neurons}.")
