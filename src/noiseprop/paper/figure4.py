"""Figure 4: what the five ResNets look at, and how much of it lies on the object."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import t as student_t
from torch import Tensor, nn

from noiseprop.data import Dataset, batches, load, split
from noiseprop.errors import RunError
from noiseprop.evaluation.scoring import iterate_dataset, model_device, evaluation_mode, derive_noise_key, score_states
from noiseprop.evaluation.statistics import Interval, mean_std
from noiseprop.files.atomic import write_aside
from noiseprop.files.checksum import add_checksum, verify_checksum
from noiseprop.files.untrusted import read_json
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.form import check_figure_4
from noiseprop.paper.reproduction import Job, recipe_of, trained
from noiseprop.paper.results import without_folder
from noiseprop.evaluation.text_summary import format_text_table
from noiseprop.saliency import smoothgrad

FORMAT = "noiseprop figure 4, version 2"
PANEL, BOXED = 5, 250  # images drawn, and images with a box looked at, at most
SIGMA, SAMPLES, DRAWS, VOTES = 0.15, 25, 1, 32  # Eq. 8's; a copy's draws of the network's noise; draws of a vote
_ROWS = 64  # images that go through a network at once

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Look:
    """What was seen: the record, and the images (n, C, H, W) and maps by network (n, H, W) of the panel."""

    record: Mapping[str, Any]
    images: Tensor
    boxes: Tensor | None
    maps: Mapping[str, Tensor]


def look(jobs: Sequence[Job], *, progress: Progress | None = None) -> Look:
    """SmoothGrad maps, Eq. 8, of test images for their true class.

    The panel has the first images that all networks classify correctly, those with a box where any have one; where
    there is no such image, the first of all. The shares of saliency inside the box are of the first images with a box,
    right or wrong. The test split is in random order. A network with noise counts as correct by a vote, and each noisy
    copy of an image meets a draw of the network's noise of its own. All networks see the same copies.

    Args:
        jobs: one for each network, trained.
        progress: called with steps done, all steps, and the next one's name.

    Raises:
        RunError: a network is not trained yet.
    """
    tell = progress or (lambda done, total, name: None)
    models = {job.row.name: trained(job) for job in jobs}
    dataset = load(jobs[0].data, jobs[0].data_dir)
    test, steps = split(dataset).test, 2 * len(models)
    right = torch.arange(len(test))
    for number, (name, model) in enumerate(models.items()):
        tell(number, steps, f"judging {name}")
        right = right[_correct(model, test[right], jobs[0].seed)]
    boxed = _with_box(test, torch.arange(len(test)))[:BOXED]
    shown = right if len(right) else torch.arange(len(test))
    shown_boxed = _with_box(test, shown)
    panel = (shown_boxed if len(shown_boxed) else shown)[:PANEL]
    seen, maps = torch.unique(torch.cat([boxed, panel])), dict[str, Tensor]()
    for number, (name, model) in enumerate(models.items(), len(models)):
        tell(number, steps, f"looking through {name}")
        maps[name] = _maps(model, test[seen], jobs[0].seed)
    tell(steps, steps, "done")
    record = _record(jobs, test, len(right))
    record |= {"source": without_folder(dataset.source), "panel_has_boxes": len(shown_boxed) > 0}
    if test.boxes is not None and len(boxed):
        shares = {name: found[torch.searchsorted(seen, boxed)] for name, found in maps.items()}
        record |= _shares(shares, test.boxes[boxed]) | {"right": torch.isin(boxed, right).tolist()}
    x, _ = next(batches(test[panel], PANEL, generator=None))
    boxes = None if test.boxes is None else test.boxes[panel]
    return Look(record, x, boxes, {name: found[torch.searchsorted(seen, panel)] for name, found in maps.items()})


def _with_box(images: Dataset, numbers: Tensor) -> Tensor:
    """Those of some images, by number, that have a box."""
    return numbers[:0] if images.boxes is None else numbers[images.boxes[numbers, 0] >= 0]


def _correct(model: nn.Module, images: Dataset, seed: int) -> Tensor:
    """Which images are right: by a vote over the network's noise, where it has any."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    with evaluation_mode(model):
        reset_noise(model, derive_noise_key(seed, "figure 4"))
        images_here = iterate_dataset(images, model_device(model))
        found = score_states(model, images_here, len(images), draws=VOTES, rows=_ROWS * 4)
    return torch.from_numpy(found["vote" if "vote" in found else "off"])


def _maps(model: nn.Module, images: Dataset, seed: int) -> Tensor:
    """Saliency (n, H, W) of each image for its true class."""
    generator, device = torch.Generator().manual_seed(seed), model_device(model)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: faster, the same values
    found: list[Tensor] = []
    for x, y in batches(images, _ROWS, generator=None):
        x, y = x.to(device), y.to(device)
        maps = smoothgrad(model, x, y, sigma=SIGMA, samples=SAMPLES, draws=DRAWS, generator=generator)
        found.append(maps.cpu())
    return torch.cat(found)


def inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """The share of each map's sum that lies in its box.

    Args:
        maps: (n, H, W), at least 0.
        boxes: (n, 4), columns x0, y0, x1, y1 in pixels; x1 and y1 belong to the box.

    Returns:
        float64, (n,); NaN where a map is zero everywhere.

    Examples:
        >>> inside(torch.ones(1, 4, 4), torch.tensor([[0, 0, 1, 3]]))
        tensor([0.5000], dtype=torch.float64)
    """
    x, y = torch.arange(maps.shape[2]), torch.arange(maps.shape[1])
    x0, y0, x1, y1 = (column.view(-1, 1) for column in boxes.unbind(1))
    mask = ((y >= y0) & (y <= y1)).unsqueeze(2) & ((x >= x0) & (x <= x1)).unsqueeze(1)  # (n, H, W)
    wide = maps.double()
    return (wide * mask).sum((1, 2)) / wide.sum((1, 2))


def _record(jobs: Sequence[Job], test: Dataset, right: int) -> dict[str, Any]:
    job = jobs[0]
    return {
        "format": FORMAT,
        "protocol": job.protocol.name,
        "departures": sorted(job.protocol.departures),
        "recipe": asdict(recipe_of(job)),
        "seed": job.seed,
        "networks": [job.row.name for job in jobs],
        "test_images": len(test),
        "right_by_all": right,
        "sigma": SIGMA,
        "samples": SAMPLES,
        "draws": DRAWS,
        "vote_draws": VOTES,
    }


def _shares(maps: Mapping[str, Tensor], boxes: Tensor) -> dict[str, Any]:
    """For each image the box's share of it, and by network that of the saliency inside the box, None of a blank map."""
    flat, shares = torch.ones_like(next(iter(maps.values()))), dict[str, list[float | None]]()
    for name, found in maps.items():
        shares[name] = [None if math.isnan(value) else round(value, 6) for value in inside(found, boxes).tolist()]
    return {"box": [round(value, 6) for value in inside(flat, boxes).tolist()], "inside": shares}


def shares_table(record: Mapping[str, Any]) -> list[list[str]]:
    """For each network the share of saliency inside the box, mean ± std over images, and the difference to the first.

    The difference is the mean on the same images with its 95 % interval (Student's t). The last columns are of the
    images that are right by all networks, and the number of blank maps, which have no share, each where there are any.
    """
    shares: Mapping[str, Sequence[float | None]] = record["inside"]
    first, right = next(iter(shares)), record["right"]
    rows = [
        [
            "",
            "saliency inside the box",
            f"more than {first}",
            f"on the {sum(right):,} of these that all get right",
            "blank maps",
        ]
    ]
    for name, values in {"the box's share of the image": record["box"], **shares}.items():
        more = _more(record, name, first) if name in shares and name != first else ""
        few = [value for value, so in zip(values, right, strict=True) if so]
        blank = f"{values.count(None):,} of {len(values):,}" if name in shares else ""
        rows.append([name, _mean(values), more, _mean(few), blank])
    blanks = any(None in values for values in shares.values())
    shown = [True, True, True, any(right), blanks]
    return [[cell for cell, so in zip(row, shown, strict=True) if so] for row in rows]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return str(mean_std(known)) if known else "–"


def _more(record: Mapping[str, Any], name: str, other: str) -> str:
    """The difference as the table shows it, with its number of images where that is not all."""
    found, n = difference(record, name, other), len(_differences(record, name, other))
    if found is None:
        return "–"
    told = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return told if n == len(record["box"]) else f"{told} (n = {n:,})"


def difference(record: Mapping[str, Any], name: str, other: str) -> Interval | None:
    """By how much more of one network's saliency lies in the box than of another's, on the same images.

    Returns:
        The mean difference and its 95 % interval (Student's t); None for fewer than two images.
    """
    differences = _differences(record, name, other)
    n = len(differences)
    if n < 2:
        return None
    mean = float(np.mean(differences))
    half = float(student_t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half)


def _differences(record: Mapping[str, Any], name: str, other: str) -> list[float]:
    """One difference for each image of which neither map is blank."""
    pairs = zip(record["inside"][name], record["inside"][other], strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def summary(record: Mapping[str, Any]) -> str:
    """How the maps were made, and the table of shares, for the terminal."""
    if "inside" not in record:
        return f"{says(record)}\nNo test image has a box, so no share of saliency inside it can be told."
    return f"{format_text_table(shares_table(record))}\n{says(record)}"


def says(record: Mapping[str, Any]) -> str:
    """How the maps were made, in plain sentences."""
    recipe, right, networks = record["recipe"], record["right_by_all"], len(record["networks"])
    named = "Table 1's recipe" if recipe["name"] == "table1" else f"the {recipe['name']} recipe, not the paper's"
    shown = f"{'the' if right else 'so the'} panel shows the first {'of them' if right else 'images'}"
    sentences = [
        f"SmoothGrad as Eq. 8, for the true class: sigma {record['sigma']:g}, {record['samples']} copies of an image, "
        f"draws of the network's noise for each: {record['draws']}.",
        f"Networks trained by {named}, epochs: {recipe['epochs']}, in {recipe['precision']}, seed {record['seed']}.",
        f"Test images right by all {networks} networks (random ones by a vote of {record['vote_draws']} draws): "
        f"{right:,} of {record['test_images']:,}; {shown}{' that have a box' if record['panel_has_boxes'] else ''}.",
        "Each map is black at 0 and white from its own 99th percentile up; a box is orange.",
    ]
    if "inside" in record:
        sentences.append(f"Shares inside the box: of the first {len(record['box']):,} with a box, right or wrong.")
        if any(None in shares for shares in record["inside"].values()):
            sentences.append(
                "A blank map is 0 everywhere: in no copy, each with its draws of the noise, does the true class's "
                "logit have a gradient; other draws might give one. Blank maps are left out."
            )
    return " ".join([*sentences, f"{record['source']}."])


def draw_figure_4(found: Look, stem: Path) -> tuple[Path, Path, Path]:
    """Write the panel as `stem`.svg and .png and the figures as .json, each aside and renamed."""
    figure = figure_4(found)
    svg, png, data = (stem.with_name(stem.name + suffix) for suffix in (".svg", ".png", ".json"))
    with rc_context({"svg.hashsalt": "figure4", "svg.fonttype": "none"}):
        write_aside(svg, lambda aside: figure.savefig(aside, format="svg", metadata={"Date": None}))
    write_aside(png, lambda aside: figure.savefig(aside, format="png", dpi=120))
    text = json.dumps(add_checksum(found.record), allow_nan=False) + "\n"
    write_aside(data, lambda aside: aside.write_text(text, encoding="utf-8"))
    return svg, png, data


def figure_4(found: Look) -> Figure:
    """One row for each image: the image, then its map for each network, black at 0, white at its 99th percentile."""
    rows, columns = len(found.images), 1 + len(found.maps)
    figure = Figure(figsize=(1.5 * columns, 1.5 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        grid[row, 0].imshow(found.images[row].permute(1, 2, 0).numpy(), interpolation="nearest")
        for column, maps in enumerate(found.maps.values(), 1):
            values = maps[row].float().numpy()
            grid[row, column].imshow(
                values, cmap="gray", vmin=0, vmax=np.percentile(values, 99), interpolation="nearest"
            )
        for axes in grid[row]:
            axes.set_axis_off()
            if found.boxes is not None and int(found.boxes[row, 0]) >= 0:
                x0, y0, x1, y1 = (int(v) for v in found.boxes[row])
                corner, size = (x0 - 0.5, y0 - 0.5), (x1 - x0 + 1, y1 - y0 + 1)
                axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#d95f02", linewidth=0.8))
    for axes, title in zip(grid[0], ("image", *found.maps), strict=True):
        axes.set_title(title, fontsize=8)
    return figure


def read_figure_4(path: Path) -> Mapping[str, Any]:
    """Read what `draw_figure_4` wrote as JSON.

    Raises:
        RunError: there is no such file, or it is damaged or no record of Figure 4.
    """
    try:
        record = read_json(path)
        record = verify_checksum(record) if isinstance(record, dict) else record
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); run `noiseprop reproduce figure4` again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RunError(f"{path} is no record of format {FORMAT!r}; run `noiseprop reproduce figure4` again")
    try:
        check_figure_4(record)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); run `noiseprop reproduce figure4` again") from error
    return record
