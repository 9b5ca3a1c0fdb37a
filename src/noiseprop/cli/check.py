"""`noiseprop check`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from noiseprop.cli.options import Granularity, Json, default

if TYPE_CHECKING:
    from noiseprop.noise.diagnostics.gradient_check import LayerCheck

_LEGEND = """Theorem 1: relative distance of Eq. 3 from autograd with the same eps, and from
finite steps of sigma with the noise held. Theorem 2: mean of Eq. 3 as all
|sigma| grow, the derivative of the expected loss, and how many standard errors
they are apart; 4 are allowed."""


@dataclass(frozen=True)
class Check:
    """Report the machine, and check Theorems 1 and 2 on a network.

    Theirs are sigma's gradients. Ends with 1 if a layer fails. For example:
      noiseprop check
      noiseprop check --model mynets:small --data cifar10 --noise linear
    """

    model: Annotated[str, arg(metavar="NAME")] = "MLPN"
    """Of a noisy network, or module:function, yours."""
    data: Annotated[str | None, default("mnist", "NAME")] = None
    """Whose images yours takes: a name or a path."""
    noise: Annotated[tuple[str, ...], default("all, if it has none", "WHERE ...")] = ()
    """Adds noise to yours: all, linear, conv or module names."""
    granularity: Annotated[Granularity, arg(metavar="UNIT")] = "neuron"
    """Of --noise: a sigma per neuron, channel or layer."""
    init: Annotated[float | Literal["normal"], arg(metavar="SIGMA")] = 1.0
    """Of --noise: sigma's start; normal: N(0, 1)."""
    draws: Annotated[int, arg(metavar="INT")] = 200
    """Of the noise, for each mean of Theorem 2."""
    images: Annotated[int, arg(metavar="INT")] = 8
    """In the batch."""
    json: Json = False
    """Print all as JSON."""

    def run(self) -> None:
        """Print the report and the checks; an error tells if one failed."""
        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.cli.network_options import subject
        from noiseprop.environment import describe_machine
        from noiseprop.errors import InputError, NoisepropError
        from noiseprop.noise.diagnostics.gradient_check import check_theorems

        for name in ("draws", "images"):
            if getattr(self, name) < 2:
                raise InputError(f"--{name} is {getattr(self, name)}; give 2 or more")
        machine = describe_machine() | {"noise kernel": describe_noise_kernel()}
        if not self.json:
            for key, value in machine.items():
                out.print(f"{key:<14} {value}", markup=False)
        chosen = subject(self.model, self.data, self.noise, self.granularity, self.init)
        x, y = chosen.batch(self.images)
        with progress_bar(f"checking {self.model}") as progress:
            layers = check_theorems(chosen.model, x, y, draws=self.draws, progress=progress)
        failed = [layer.path for layer in layers if not (layer.theorem_1 and layer.theorem_2)]
        if self.json:
            rows = [_figures(layer) for layer in layers]
            print_json({"machine": machine, "model": self.model, "layers": rows, "passed": not failed})
        else:
            out.print(f"\n{_table(layers)}\n\n{_LEGEND}", markup=False)
        if failed:
            raise NoisepropError(f"{self.model}: the check failed for {', '.join(failed)}")
        if not self.json:
            out.print(f"\n{self.model}: Theorems 1 and 2 hold in {len(layers)} of {len(layers)} layers.", markup=False)


def describe_noise_kernel() -> str:
    """Return how noise is computed on this machine."""
    import torch

    from noiseprop.noise.kernels.dispatch import select_backend
    from noiseprop.noise.kernels.openmp import find_gomp_parallel

    if select_backend(torch.zeros(1)) != "numba":
        return "plain torch, slower: numba is missing"
    return f"fused, compiled by numba, on {'the threads of torch' if find_gomp_parallel() else 'Python threads'}"


def _table(layers: "list[LayerCheck]") -> str:
    """One line per layer."""
    from noiseprop.evaluation.text_summary import format_text_table

    rows = [["layer", "sigmas", "same eps", "steps", "Th. 1", "Eq. 3", "d E[loss]", "apart", "Th. 2"]]
    for layer in layers:
        same = "-" if layer.autograd_error is None else f"{layer.autograd_error:.1e}"
        mean, slope = (f"{m.value:.2g}±{m.error:.1g}" for m in (layer.estimate, layer.derivative))
        words = ["pass" if passed else "FAIL" for passed in (layer.theorem_1, layer.theorem_2)]
        first = [layer.path, f"{layer.sigmas:,}", same, f"{layer.finite_difference_error:.1e}", words[0]]
        rows.append([*first, mean, slope, f"{layer.standard_errors_apart:.1f}", words[1]])
    return format_text_table(rows, gap=" ")


def _figures(layer: "LayerCheck") -> dict[str, Any]:
    """One layer for programs; null where a figure is infinite or not there."""
    from dataclasses import asdict
    from math import isfinite

    verdicts = {"theorem_1": layer.theorem_1, "theorem_2": layer.theorem_2}
    figures = asdict(layer) | {"standard_errors_apart": layer.standard_errors_apart} | verdicts
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in figures.items()}
