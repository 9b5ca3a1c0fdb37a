"""Table and picture of a demo."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noiseprop.evaluation.statistics import mean_std
from noiseprop.files.atomic import write_aside
from noiseprop.paper.demo import DemoRecord
from noiseprop.paper.figures import draw_band
from noiseprop.paper.tables import Rows

# Wong's palette for colour-blind readers; the markers differ in grey, too
COLOURS = {"MLP": "#0072B2", "MLP+": "#D55E00", "MLPN": "#009E73"}
_NOISE = {"MLP": ("no noise", "o"), "MLP+": ("fixed noise", "s"), "MLPN": ("learned noise", "^")}
_LAYERS = {
    "fc1": ("100 neurons", "#56B4E9", "-"),
    "fc2": ("50 neurons", "#E69F00", "--"),
    "fc3": ("10 logits", "#CC79A7", "-."),
}


def tabulate_demo(record: DemoRecord) -> Rows:
    """Return a row for each network, and one for each noisy network with its noise off.

    Cells are mean ± sample standard deviation over the training seeds, in per cent of the test images.
    """
    eot = f"EOT-{record.settings.eot_draws}"
    table: Rows = [["% right", "clean", "FGSM", f"FGSM {eot}", "PGD", f"PGD {eot}"]]
    for model, runs in record.models.items():
        for name, found in ((model, [run.on for run in runs]), (f"{model}, off", [run.off for run in runs])):
            present = [accuracies for accuracies in found if accuracies is not None]
            if present:
                columns = zip(*((a.clean, a.fgsm, a.fgsm_eot, a.pgd, a.pgd_eot) for a in present), strict=True)
                table.append([name, *map(_format_percent, columns)])
    return table


def _format_percent(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    spread = mean_std(known) if known else None
    if spread is None:
        return ""
    return f"{spread.mean:.1f}" if spread.std is None else f"{spread.mean:.1f} ± {spread.std:.1f}"


def describe_demo(record: DemoRecord) -> list[str]:
    """Return what the columns are, in sentences."""
    s, data, runs = record.settings, record.data, record.models["MLPN"]
    ends = [f"{mean_std([run.sigma[layer][-1] for run in runs])} in {layer}" for layer in runs[0].sigma]
    pgd = f"eps {255 * s.pgd_eps:g}/255, {s.pgd_steps} steps of {51 * s.pgd_eps:g}/255"
    return [
        f"Per cent of {data.test} test digits, mean ± standard deviation over {len(s.seeds)} training seeds; "
        f"{data.train:,} digits for training, {s.epochs} epochs.",
        f"FGSM: eps {s.fgsm_eps:g}. PGD: {pgd}. Both see the network and its noise, with one draw of it per gradient "
        f"or, under EOT-{s.eot_draws}, the mean over {s.eot_draws} draws.",
        "Noisy networks are scored by one draw of noise per image that the attack has not seen. Off: the same network "
        "without its noise, attacked and scored so.",
        f"MLP+ keeps sigma = 1. MLPN's sigma starts at 1 and ends, on average over a layer, at {', '.join(ends)}.",
    ]


def draw_demo(record: DemoRecord, path: Path) -> None:
    """Write the picture as PNG: accuracy against eps, and sigma by epoch. Its text "Source" is `digest_demo(record)`.

    Raises:
        RunError: the file cannot be written.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_accuracy(left, record)
    _draw_sigma(right, record)
    for axes in (left, right):
        axes.grid(color="0.92", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(format_caption(record), fontsize=9, color="0.35")
    write_aside(path, lambda aside: figure.savefig(aside, format="png", metadata={"Source": digest_demo(record)}))


def format_caption(record: DemoRecord) -> str:
    """Return what lines and bands are, and the steps of the attack at other eps than Table 2's."""
    lines = f"Lines: mean of {len(record.settings.seeds)} training seeds; bands: ± 1 standard deviation over them."
    return f"{lines} {record.data.test} test digits of {record.data.name}. At every eps PGD's steps have size eps/5."


def digest_demo(record: DemoRecord) -> str:
    """Return the SHA-256 of a record, by which a picture is known to belong to it."""
    return hashlib.sha256(msgspec.json.encode(record, order="deterministic")).hexdigest()


def _draw_accuracy(axes: Any, record: DemoRecord) -> None:
    settings, small = record.settings, {"color": "0.35", "fontsize": 9}
    eps, published = 255 * np.array(settings.curve_eps), 255 * settings.pgd_eps
    for name, runs in record.models.items():
        noise, marker = _NOISE[name]
        line: dict[str, Any] = {"color": COLOURS[name], "label": f"{name} ({noise})", "marker": marker, "ms": 5}
        draw_band(axes, eps, [run.curve for run in runs], lw=1.8, **line)
    axes.axhline(0.1, color="0.5", lw=1, ls=":")
    axes.text(eps[-1], 0.11, "chance", ha="right", va="bottom", **small)
    axes.axvline(published, color="0.5", lw=1, ls="--")
    axes.text(published, 0.985, " Table 2's eps", va="top", **small)
    axes.set(xlabel="eps of the attack (in 1/255; pixels are 0 to 255)", ylabel="accuracy", ylim=(0, 1))
    eot = f"EOT-{settings.eot_draws} where there is noise"
    axes.set_title(f"Accuracy under PGD-{settings.pgd_steps}, {eot}", fontsize=11)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))


def _draw_sigma(axes: Any, record: DemoRecord) -> None:
    runs, epochs, fixed = record.models["MLPN"], np.arange(record.settings.epochs + 1), COLOURS["MLP+"]
    for layer, (size, colour, style) in _LAYERS.items():
        curves = [(1.0, *run.sigma[layer]) for run in runs]
        draw_band(axes, epochs, curves, color=colour, label=f"{layer} ({size})", ls=style, lw=1.8)
    axes.axhline(1, color=fixed, lw=1, ls=":")
    axes.text(epochs[-1], 1.01, "MLP+: fixed at 1", color=fixed, ha="right", va="bottom", fontsize=9)
    axes.set(xlabel="epoch", ylabel="sigma, mean over the layer's neurons", ylim=(0, 1.1), xlim=(0, epochs[-1]))
    axes.set_title("MLPN: sigma of each layer while it learns", fontsize=11)
    axes.legend(frameon=False, loc="lower left")
