"""`noiseprop inspect`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from noiseprop.cli.options import DataDir, Json, OwnData, RunFolder, Trusted

_NOISE_LEGEND = """Medians [10 %, 90 %]. SNR: |mean| / std of one batch's gradient. Less, more:
share of sigmas that the loss would lower or raise, beyond 2 standard errors."""


@dataclass(frozen=True)
class Inspect:
    """Compare a network's noise with its signal, and show its trend.

    Writes RUN/noise.png, and every neuron to RUN/noise.safetensors. For example:
      noiseprop inspect runs/mlpn
    """

    run_dir: RunFolder
    """Folder that `noiseprop train` wrote."""
    batches: Annotated[int, arg(metavar="INT")] = 64
    """Batches for the gradient measurements."""
    model: Trusted = ()
    """module:function of your network; runs its code."""
    data: OwnData = None
    """New path of your data."""
    data_dir: DataDir = None
    """Folder of the official files."""
    json: Json = False
    """Print the table as JSON, with deciles 1, 5 and 9 per layer."""

    def run(self) -> None:
        """Measure, print the table, write the files and print their paths."""
        from itertools import islice

        import torch

        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.data import batches
        from noiseprop.errors import InputError, RunError
        from noiseprop.noise.attach.add_noise import is_noisy
        from noiseprop.noise.diagnostics.inspect_noise import inspect_noise
        from noiseprop.report.noise_table import draw_noise, format_noise_table, list_noise_figures, write_noise_tensors
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

            def repeat_epochs():
                while True:
                    yield from batches(images, size, generator=generator, drop_last=True)

            def report_batches():
                for done, batch in enumerate(islice(repeat_epochs(), self.batches)):
                    progress(done, self.batches, "batches")
                    yield batch

            layers = inspect_noise(model, report_batches())
        title = f"{settings.model.name} on {data.name}: {self.batches} batches of {size}"
        picture, neurons = self.run_dir / "noise.png", self.run_dir / "noise.safetensors"
        draw_noise(layers, picture, title=title)
        write_noise_tensors(layers, neurons)
        if self.json:
            found = {"model": settings.model.name, "data": data.name, "batches": self.batches}
            found |= {
                "batch_size": size,
                "layers": list_noise_figures(layers),
                "picture": str(picture),
                "neurons": str(neurons),
            }
            print_json(found)
            return
        out.print(format_noise_table(layers), markup=False)
        out.print(_NOISE_LEGEND, markup=False)
        out.print(f"The picture is in {picture}, every neuron in {neurons}.")
