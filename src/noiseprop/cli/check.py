"""`noiseprop check`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from noiseprop.cli.options import GranularityName, Json, check_initial_sigma, describe_default

if TYPE_CHECKING:
    from noiseprop.noise.diagnostics.gradient_check import LayerCheck

_THEOREM_LEGEND = """Theorem 1: relative difference between Eq. 3 and autograd with the same eps, and
between Eq. 3 and finite differences of sigma with fixed noise. Theorem 2: mean
of Eq. 3 for a growth of all |sigma|, derivative of the expected loss, and their
difference in standard errors (at most 4 pass)."""


@dataclass(frozen=True)
class Check:
    """Report the machine, and check Theorems 1 and 2 on a network.

    They concern sigma's gradients. Exits with 1 if a layer fails. Examples:
      noiseprop check
      noiseprop check --model mynets:small --data cifar10 --noise linear
    """

    model: Annotated[str, arg(metavar="NAME")] = "MLPN"
    """Noisy network, or your module:function."""
    data: Annotated[str | None, describe_default("mnist", "NAME")] = None
    """Images for yours: a name or a path."""
    noise: Annotated[tuple[str, ...], describe_default("all, if it has none", "WHERE ...")] = ()
    """Noise in yours: all, linear, conv or module names."""
    granularity: Annotated[GranularityName, arg(metavar="UNIT")] = "neuron"
    """One sigma of --noise per neuron, channel or layer."""
    init: Annotated[float | Literal["normal"], arg(metavar="SIGMA")] = 1.0
    """Start of sigma for --noise; normal: N(0, 1)."""
    draws: Annotated[int, arg(metavar="INT")] = 200
    """Noise draws per mean of Theorem 2."""
    images: Annotated[int, arg(metavar="INT")] = 8
    """Images per batch."""
    json: Json = False
    """Print the report as JSON."""

    def run(self) -> None:
        """Print the report and the checks.

        Raises:
            NoisepropError: a check failed.
        """
        from noiseprop.cli.console import out, print_json, progress_bar
        from noiseprop.cli.network_options import build_subject
        from noiseprop.environment import describe_machine
        from noiseprop.errors import InputError, NoisepropError
        from noiseprop.noise.diagnostics.gradient_check import check_theorems

        check_initial_sigma(self.init)
        for name in ("draws", "images"):
            if getattr(self, name) < 2:
                raise InputError(f"--{name} is {getattr(self, name)}; give 2 or more")
        machine = describe_machine() | {"noise kernel": describe_noise_kernel()}
        if not self.json:
            for key, value in machine.items():
                out.print(f"{key:<14} {value}", markup=False)
        chosen = build_subject(self.model, self.data, self.noise, self.granularity, self.init)
        x, y = chosen.make_batch(self.images)
        with progress_bar(f"checking {self.model}") as progress:
            layers = check_theorems(chosen.model, x, y, draws=self.draws, progress=progress)
        failed = [layer.path for layer in layers if not (layer.theorem_1 and layer.theorem_2)]
        if self.json:
            rows = [_export_layer_check(layer) for layer in layers]
            print_json({"machine": machine, "model": self.model, "layers": rows, "passed": not failed})
        else:
            out.print(f"\n{_format_checks(layers)}\n\n{_THEOREM_LEGEND}", markup=False)
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


def _format_checks(layers: "list[LayerCheck]") -> str:
    """Return a text table with one line per layer."""
    from noiseprop.evaluation.text_summary import format_text_table

    rows = [["layer", "sigmas", "same eps", "steps", "Th. 1", "Eq. 3", "d E[loss]", "apart", "Th. 2"]]
    for layer in layers:
        same = "-" if layer.autograd_error is None else f"{layer.autograd_error:.1e}"
        mean, slope = (f"{m.value:.2g}±{m.error:.1g}" for m in (layer.estimate, layer.derivative))
        words = ["pass" if passed else "FAIL" for passed in (layer.theorem_1, layer.theorem_2)]
        first = [layer.path, f"{layer.sigmas:,}", same, f"{layer.finite_difference_error:.1e}", words[0]]
        rows.append([*first, mean, slope, f"{layer.standard_errors_apart:.1f}", words[1]])
    return format_text_table(rows, gap=" ")


def _export_layer_check(layer: "LayerCheck") -> dict[str, Any]:
    """Return one layer's figures for JSON; infinite and missing figures become null."""
    from dataclasses import asdict
    from math import isfinite

    verdicts = {"theorem_1": layer.theorem_1, "theorem_2": layer.theorem_2}
    figures = asdict(layer) | {"standard_errors_apart": layer.standard_errors_apart} | verdicts
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in figures.items()}
