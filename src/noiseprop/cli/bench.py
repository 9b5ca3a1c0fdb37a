"""`noiseprop bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from noiseprop.cli.options import Flag, GranularityName, Json, describe_default


@dataclass(frozen=True)
class Bench:
    """Time the cost of noise in a training step on this machine.

    Compares no noise, noise in plain torch, and noiseprop. For example:
      noiseprop bench
      noiseprop bench --model mynets:small --data cifar10 --noise conv
    """

    model: Annotated[str, arg(metavar="NAME")] = "CNN-AN"
    """Noisy network, or your module:function."""
    data: Annotated[str | None, describe_default("mnist", "NAME")] = None
    """Images for yours: a name or a path."""
    noise: Annotated[tuple[str, ...], describe_default("all, if it has none", "WHERE ...")] = ()
    """Noise in yours: all, linear, conv or module names."""
    granularity: Annotated[GranularityName, arg(metavar="UNIT")] = "neuron"
    """One sigma of --noise per neuron, channel or layer."""
    batch_size: Annotated[int, arg(metavar="INT")] = 128
    """Images per step."""
    seconds: Annotated[float, arg(metavar="FLOAT")] = 15.0
    """Time limit of the measurement."""
    all: Flag = False
    """Run this checkout's benchmarks instead (long)."""
    json: Json = False
    """Print the figures as JSON."""

    def run(self) -> None:
        """Measure and print, or run the project's benchmarks."""
        from noiseprop.cli.check import describe_noise_kernel
        from noiseprop.cli.console import error_console, out, print_json
        from noiseprop.cli.network_options import build_subject
        from noiseprop.environment import describe_machine
        from noiseprop.errors import InputError
        from noiseprop.noise.attach.add_noise import is_noisy
        from noiseprop.training.step_cost import measure_step_cost

        if self.all:
            return _run_all()
        if self.batch_size < 1 or not 0 < self.seconds < 1e6:
            raise InputError(f"--batch-size is {self.batch_size}, --seconds {self.seconds}; give numbers above 0")
        chosen = build_subject(self.model, self.data, self.noise, self.granularity, 1.0)
        if not is_noisy(chosen.model):
            raise InputError(f"{self.model} has no noise, so there is nothing to time; choose a noisy network")
        x, y = chosen.make_batch(self.batch_size)
        title = f"timing {self.model}, {self.seconds:g} s at most"
        if not error_console.is_terminal:
            error_console.print(title, markup=False)
        with error_console.status(title):
            figures = measure_step_cost(chosen.model, x, y, seconds=self.seconds)
        machine = describe_machine() | {"noise kernel": describe_noise_kernel()}
        if self.json:
            found = {"model": self.model, "batch_size": self.batch_size, "machine": machine, "figures": figures}
            return print_json(found)
        out.print(f"{'one step':<12} {'ms':>9} {'ratio':>7}  quartiles", markup=False)
        for name, f in figures.items():
            quartiles = f"[{f['quartile_1']:.2f}, {f['quartile_3']:.2f}]"
            out.print(f"{name:<12} {f['milliseconds']:>9.2f} {f['median']:>6.2f}x  {quartiles}", markup=False)
        shape, count = "x".join(map(str, chosen.image)), int(figures["noiseprop"]["rounds"])
        out.print(f"\n{self.model}, {self.batch_size} images of {shape}, float32; {count} steps of each, in turn.")
        out.print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}.", markup=False)
        return None


def _run_all() -> None:
    """Run the scripts in the checkout's benchmarks/, each in a separate process."""
    import subprocess
    import sys

    from noiseprop.errors import NoisepropError

    script = Path(__file__).parents[3] / "benchmarks" / "run.py"
    if not script.is_file():
        raise NoisepropError(
            "the project's benchmarks are in its checkout, not in the package; clone the repository, or omit --all"
        )
    if subprocess.run([sys.executable, str(script)], check=False).returncode:  # noqa: S603
        raise NoisepropError("a benchmark failed; see above")
