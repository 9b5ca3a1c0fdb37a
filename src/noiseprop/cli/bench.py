"""`noiseprop bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from noiseprop.cli.options import Flag, Granularity, Json, default


@dataclass(frozen=True)
class Bench:
    """Time what noise adds to a training step on this machine.

    Beside the same network without noise and with plain torch's. For example:
      noiseprop bench
      noiseprop bench --model mynets:small --data cifar10 --noise conv
    """

    model: Annotated[str, arg(metavar="NAME")] = "CNN-AN"
    """Of a noisy network, or module:function, yours."""
    data: Annotated[str | None, default("mnist", "NAME")] = None
    """Whose images yours takes: a name or a path."""
    noise: Annotated[tuple[str, ...], default("all, if it has none", "WHERE ...")] = ()
    """Adds noise to yours: all, linear, conv or module names."""
    granularity: Annotated[Granularity, arg(metavar="UNIT")] = "neuron"
    """Of --noise: a sigma per neuron, channel or layer."""
    batch_size: Annotated[int, arg(metavar="INT")] = 128
    """Images in a step."""
    seconds: Annotated[float, arg(metavar="FLOAT")] = 15.0
    """To measure for, at most."""
    all: Flag = False
    """Run the benchmarks of this checkout instead: long."""
    json: Json = False
    """Print the figures as JSON."""

    def run(self) -> None:
        """Measure and print, or run the project's benchmarks."""
        from noiseprop.cli.check import describe_noise_kernel
        from noiseprop.cli.console import error_console, out, print_json
        from noiseprop.cli.network_options import subject
        from noiseprop.environment import describe_machine
        from noiseprop.errors import InputError
        from noiseprop.noise.attach.add_noise import is_noisy
        from noiseprop.training.step_cost import measure_step_cost

        if self.all:
            return _run_all()
        if self.batch_size < 1 or not 0 < self.seconds < 1e6:
            raise InputError(f"--batch-size is {self.batch_size}, --seconds {self.seconds}; give numbers above 0")
        chosen = subject(self.model, self.data, self.noise, self.granularity, 1.0)
        if not is_noisy(chosen.model):
            raise InputError(f"{self.model} has no noise, so there is nothing to time; choose a noisy network")
        x, y = chosen.batch(self.batch_size)
        doing = f"timing {self.model}, {self.seconds:g} s at most"
        if not error_console.is_terminal:
            error_console.print(doing, markup=False)
        with error_console.status(doing):
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
    """The scripts in the checkout's benchmarks/, each in a process of its own."""
    import subprocess
    import sys

    from noiseprop.errors import NoisepropError

    script = Path(__file__).parents[3] / "benchmarks" / "run.py"
    if not script.is_file():
        raise NoisepropError(
            "the project's benchmarks are in its checkout, not in the package; clone it, or leave --all out"
        )
    if subprocess.run([sys.executable, str(script)], check=False).returncode:  # noqa: S603
        raise NoisepropError("a benchmark failed; see above")
