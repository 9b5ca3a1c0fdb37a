"""Write the tables of docs/performance.md and docs/scale.md from results/benchmarks/*.json.

`python benchmarks/tables.py [--check] [PAGE …]`; PAGE is performance or scale; both if omitted.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagenet as estimates

ROOT = Path(__file__).parent.parent
STEPS = ("mlp-fp32", "cnn-fp32", "cnn-bf16", "resnet18-fp32", "resnet18-bf16")


def read_benchmark(name: str) -> dict[str, Any]:
    """Return the content of one benchmark file."""
    return json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())


def format_table(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def format_ratio(figure: dict[str, float]) -> str:
    """Format a median ratio with its quartiles."""
    return f"{figure['median']:.3f} ({figure['quartile_1']:.3f}–{figure['quartile_3']:.3f})"


def format_step_time() -> str:
    """Return step times relative to the noise-free network."""
    files = {name: read_benchmark(f"step-{name}")["figures"] for name in STEPS}
    variants = [v for v in next(iter(files.values())) if v != "no noise"]
    body = []
    for variant in variants:
        body.append([variant, *(format_ratio(figures[variant]) for figures in files.values())])
    pair = "noiseprop, compiled"
    body.append(
        [
            "noiseprop over no noise, both compiled",
            *(format_ratio(f[pair]["over no noise, compiled"]) for f in files.values()),
        ]
    )
    plain = ["no noise, ms", *(f"{figures['no noise']['milliseconds']:.2f}" for figures in files.values())]
    rounds = ["rounds (noiseprop)", *(str(figures["noiseprop"]["rounds"]) for figures in files.values())]
    return format_table(["step time, ×", *STEPS], [plain, *body, rounds])


def format_aims() -> str:
    """Return the targets with the measured figures and the amount by which each is missed."""
    steps = {name: read_benchmark(f"step-{name}")["figures"] for name in STEPS}
    nothing = steps["mlp-fp32"]["no-op autograd function"]["median"]
    limits = dict(zip(STEPS, (nothing + 0.10, 1.12, 1.30, 1.03, 1.07), strict=True))
    targets = [(f"step time, {name}, ×", limits[name], f["noiseprop"]["median"]) for name, f in steps.items()]
    for key, what in (("bytes", "bytes saved"), ("peak", "peak memory")):
        targets.append((f"{what}, worst network, ×", 1.01, max(f["noiseprop"][key] for f in steps.values())))
    ns = {
        name: figure["nanoseconds"]
        for name, figure in read_benchmark("kernel")["figures"]["float32, contiguous"].items()
    }
    plain = ns["plain: x + sigma * randn_like(x)"]
    for where, name in (
        ("new tensor", "fused forward"),
        ("existing tensor", "fused forward, into an existing tensor"),
    ):
        targets.append((f"kernel forward, {where}, ns", 0.4, ns[name]))
        targets.append((f"kernel forward, {where}, over plain", 1 / 16, ns[name] / plain))
    targets.append(("kernel backward, ns", 0.5, ns["fused gradient of sigma"]))
    draws = read_benchmark("eot")["figures"]
    for name, limit in (("CNN-MLPN", 1.4), ("ResNet18-MLPN", 1.15)):
        targets.append((f"EOT-20 over EOT-1, {name}", limit, draws[f"{name}, noiseprop"]["20"]["median"]))
    share = read_benchmark("augment")["figures"]["crop_and_flip"]["share of a step"]
    targets.append(("augmentation, share of a ResNet18 step, bf16", 0.03, share))
    body = [
        [what, f"{limit:.3f}", f"{got:.3f}", f"{got - limit:.3f}" if got > limit else "met"]
        for what, limit, got in targets
    ]
    return format_table(["", "at most", "measured", "missed by"], body)


def format_step_memory() -> str:
    """Return bytes saved for the backward pass and peak memory, relative to the noise-free network."""
    files = {name: read_benchmark(f"step-{name}")["figures"] for name in STEPS}
    body = []
    for variant in ("plain", "released code", "PNI", "noiseprop"):
        cells = []
        for figures in files.values():
            figure = figures[variant]
            peak = f", {figure['peak']:.3f}" if "peak" in figure else ""
            cells.append(f"{figure['bytes']:.4f}{peak}")
        body.append([variant, *cells])
    return format_table(["bytes saved ×, peak memory ×", *STEPS], body)


def format_kernel() -> str:
    """Return nanoseconds per element."""
    figures = {name: f for name, f in read_benchmark("kernel")["figures"].items() if "autograd" not in name}
    names = list(next(iter(figures.values())))
    body = [[name, *(f"{f[name]['nanoseconds']:.2f}" for f in figures.values())] for name in names]
    return format_table(["ns per element", *figures], body)


def format_eot() -> str:
    """Return the time of EOT-K relative to EOT-1."""
    body = []
    for name, figure in read_benchmark("eot")["figures"].items():
        body.append([name, *(format_ratio(figure[k]) if k in figure else "" for k in ("5", "20"))])
    return format_table(["network, tool", "K = 5 over K = 1", "K = 20 over K = 1"], body)


def format_growth() -> str:
    """Return step times against batch size, width and number of noisy layers."""
    body = []
    for varied, figures in read_benchmark("growth")["figures"].items():
        for figure in figures:
            size = [str(figure[name]) for name in ("batch", "width", "noisy layers")]
            body.append([varied, *size, f"{figure['milliseconds without']:.2f}", format_ratio(figure)])
    return format_table(["varied", "batch", "width", "noisy layers", "no noise, ms", "noise, ×"], body)


def format_estimators() -> str:
    """Return the variance of the estimators, their cost, and the product."""
    figures = read_benchmark("estimators")["figures"]
    body = []
    for activation in ("tanh", "sign"):
        base = next(row for row in figures[activation] if row["sigma"])
        for row in figures[activation]:
            cells = [activation, row["estimator"], f"{row['ms']:.2f}"]
            for key in ("sigma", "weights"):
                cost = row[key] * row["ms"] / (base[key] * base["ms"])
                cells.append(f"{row[key]:.3g} ({cost:,.3g})" if row[key] else "no gradient")
            body.append(cells)
    return format_table(
        ["activation", "estimator", "ms", "variance for sigma (× at equal cost)", "for weights (×)"], body
    )


def format_epochs() -> str:
    """Return seconds per epoch of MNIST."""
    body = []
    for name, figure in read_benchmark("train-mnist")["figures"].items():
        seconds = figure["seconds"]
        plain = seconds.get("plain loop, fp32")
        cells = [f"{statistics.median(seconds['noiseprop']):.2f}", f"{statistics.median(plain):.2f}" if plain else ""]
        body.append([name, *cells])
    return format_table(["epoch of 50,000 digits", "noiseprop, s", "plain loop, fp32, s"], body)


def format_attacks() -> str:
    """Return times of other tools relative to noiseprop, and the remaining accuracy."""
    body = []
    for name, figure in read_benchmark("attacks")["figures"].items():
        times, left = figure["times over noiseprop"], figure["robust accuracy"]
        ours = f"{times['noiseprop']['milliseconds'] / 1e3:.2f} s; {left['noiseprop']:.3f}"
        body.append([name, ours, *(f"{format_ratio(times[t])}; {left[t]:.3f}" for t in ("torchattacks", "foolbox"))])
    return format_table(["PGD-10", "noiseprop", "torchattacks, ×", "foolbox, ×"], body)


def format_corruptions() -> str:
    """Return microseconds per image of 32 x 32 pixels, and the speed-up over the loop of the definition."""
    body = []
    for name, figure in read_benchmark("corruptions")["figures"].items():
        times = [f"{figure[f'{whose}, us an image']:,.0f}" for whose in ("definition", "ours")]
        body.append([name.replace("_", " "), *times, f"{figure['ratio']:.1f}"])
    return format_table(["one image of 32 × 32", "definition, µs", "noiseprop, µs", "times as fast"], body)


def format_augment() -> str:
    """Return the cost of random crops and flips."""
    figures = read_benchmark("augment")["figures"]
    alone = figures["crop_and_flip"]
    return (
        f"A ResNet18 step in bf16 takes {figures['step']['milliseconds']:.0f} ms, crops and flips of its batch "
        f"{alone['milliseconds']:.2f} ms, {100 * alone['share of a step']:.2f} % of it. A step with them takes "
        f"{format_ratio(figures['step, augmented'])} times as long as one without."
    )


def format_machine() -> str:
    """Return the machine of the measurements."""
    m = read_benchmark("kernel")["machine"]
    return (
        f"{m['cpu']}, {m['cores']} cores ({', '.join(m['vector'])}), {m['threads']} threads, torch {m['torch']}, "
        f"numba {m['numba']}, NumPy {m['numpy']}, Python {m['python']}."
    )


def format_processes() -> str:
    """Return images per second of one process, and the ratios for two."""
    body = []
    for name, seconds in read_benchmark("processes")["figures"].items():
        images = seconds["images"]
        speeds = {who: [images / time for time in seconds["seconds"][who]] for who in seconds["seconds"]}
        first = next(iter(speeds.values()))
        cells = [f"{statistics.median(first):,.0f}"]
        for speed in list(speeds.values())[1:]:
            ratios = sorted(a / b for a, b in zip(speed, first, strict=True))
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})")
        body.append([name, *cells])
    header = ["one process, one thread: images per second", "two processes, one thread each, ×"]
    return format_table(["", *header, "one process, two threads, ×"], body)


def format_imagenet() -> str:
    """Return the estimates of benchmarks/imagenet.py."""
    header, *body = estimates.list_rows()
    return f"{estimates.describe_network()}\n\n{format_table(header, body)}"


PAGES: dict[str, tuple[Callable[[], str], ...]] = {
    "performance": (
        format_machine,
        format_aims,
        format_step_time,
        format_step_memory,
        format_epochs,
        format_kernel,
        format_eot,
        format_attacks,
        format_corruptions,
        format_augment,
        format_growth,
        format_estimators,
    ),
    "scale": (format_processes, format_imagenet),
}


def fill_page(page: str, tables: tuple[Callable[[], str], ...]) -> str:
    """Return the page with every table between its markers replaced."""
    for make in tables:
        name = make.__name__.removeprefix("format_")
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        page, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, page, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"the page has {found} places marked <!-- {name} -->, expected 1")
    return page


def main() -> int:
    """Update the pages; with --check, exit with 1 if they differ from the results."""
    chosen, same = [name for name in PAGES if name in sys.argv[1:]] or list(PAGES), True
    for name in chosen:
        path = ROOT / "docs" / f"{name}.md"
        page = path.read_text()
        new = fill_page(page, PAGES[name])
        same &= new == page
        if "--check" not in sys.argv:
            path.write_text(new)
    return int("--check" in sys.argv and not same)


if __name__ == "__main__":
    sys.exit(main())
