"""Figure 4: saliency maps of the five ResNets, and the share of saliency on the object."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from msgspec import Meta
from scipy.stats import t as student_t
from torch import Tensor, nn

from noiseprop.data import Dataset, batches, load, split
from noiseprop.errors import RunError
from noiseprop.evaluation.scoring import derive_noise_key, evaluation_mode, iterate_dataset, model_device, score_states
from noiseprop.evaluation.statistics import Interval, mean_std
from noiseprop.evaluation.text_summary import format_text_table
from noiseprop.files.atomic import write_aside
from noiseprop.files.records import format_record, read_record
from noiseprop.noise.stream import reset_noise
from noiseprop.paper.job import Job
from noiseprop.paper.results import remove_folder
from noiseprop.paper.run_job import load_trained
from noiseprop.saliency import smoothgrad
from noiseprop.training import Recipe

PANEL, BOXED = 5, 250  # largest numbers of images in the panel, and of images whose shares are measured
SIGMA, SAMPLES, DRAWS, VOTES = 0.15, 25, 1, 32  # of Eq. 8; noise draws of a copy; draws of a vote
_ROWS = 64  # images per pass

ReportProgress = Callable[[int, int, str], None]
_Count = Annotated[int, Meta(ge=0, le=10**9)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class SaliencyShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share of the box by image: of the image, and by network of the saliency, None for a blank map.

    `right` states which of the images all networks classify correctly.
    """

    box: Annotated[tuple[_Share, ...], Meta(min_length=1)]
    inside: Annotated[dict[str, tuple[_Share | None, ...]], Meta(min_length=1)]
    right: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Check that all networks have as many images."""
        if {len(values) for values in (self.right, *self.inside.values())} != {len(self.box)}:
            raise ValueError("it has shares of different numbers of images, or of none")

    @property
    def has_blank_maps(self) -> bool:
        """Return whether a map is zero everywhere."""
        return any(None in values for values in self.inside.values())


class SaliencyResult(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format", tag="noiseprop saliency"
):
    """Result of Figure 4: settings, networks, numbers of images, and the shares if images have boxes."""

    protocol: str
    departures: tuple[str, ...]
    recipe: Recipe
    seed: Annotated[int, Meta(ge=0, lt=2**62)]
    networks: tuple[str, ...]
    test_images: _Count
    right_by_all: _Count
    sigma: float
    samples: _Count
    draws: _Count
    vote_draws: _Count
    source: str
    panel_has_boxes: bool
    shares: SaliencyShares | None = None

    def __post_init__(self) -> None:
        """Check the shares against the other fields."""
        if self.shares and tuple(self.shares.inside) != self.networks:
            raise ValueError("it has shares of other networks than it names")
        if not sum(self.shares.right if self.shares else ()) <= self.right_by_all <= self.test_images:
            raise ValueError("it has more images right by all than there are")

    @property
    def description(self) -> str:
        """Return how the maps were made, in sentences."""
        return " ".join(_ENVIRONMENT.get_template("saliency_settings.j2").render(record=self).split())


@dataclass(frozen=True)
class SaliencyFigure:
    """Result, with the images (n, C, H, W) and the maps by network (n, H, W) of the panel."""

    record: SaliencyResult
    images: Tensor
    boxes: Tensor | None
    maps: Mapping[str, Tensor]


def compute_saliency(jobs: Sequence[Job], *, progress: ReportProgress | None = None) -> SaliencyFigure:
    """Compute SmoothGrad maps, Eq. 8, of test images for their true class.

    The panel has the first images that all networks classify correctly, those with a box if there are any; if no image
    is right by all, the first images. The shares of saliency inside the box are those of the first images with a box,
    right or wrong. The test split is in random order. A network with noise counts as correct by a vote, and each noisy
    copy of an image has its own draw of the network's noise. All networks see the same copies.

    Args:
        jobs: one for each network, trained.
        progress: called with finished steps, all steps, and the next one's name.

    Raises:
        RunError: a network is not trained yet.
    """
    report_progress = progress or (lambda done, total, name: None)
    models = {job.row.name: load_trained(job) for job in jobs}
    dataset = load(jobs[0].data, jobs[0].data_dir)
    test, steps = split(dataset).test, 2 * len(models)
    right = torch.arange(len(test))
    for number, (name, model) in enumerate(models.items()):
        report_progress(number, steps, f"classifying by {name}")
        right = right[_classify_images(model, test[right], jobs[0].seed)]
    boxed = _select_boxed(test, torch.arange(len(test)))[:BOXED]
    shown = right if len(right) else torch.arange(len(test))
    shown_boxed = _select_boxed(test, shown)
    panel = (shown_boxed if len(shown_boxed) else shown)[:PANEL]
    seen, maps = torch.unique(torch.cat([boxed, panel])), dict[str, Tensor]()
    for number, (name, model) in enumerate(models.items(), len(models)):
        report_progress(number, steps, f"maps of {name}")
        maps[name] = _compute_maps(model, test[seen], jobs[0].seed)
    report_progress(steps, steps, "done")
    shares = None
    if test.boxes is not None and len(boxed):
        of_boxed = {name: found[torch.searchsorted(seen, boxed)] for name, found in maps.items()}
        shares = _measure_shares(of_boxed, test.boxes[boxed], torch.isin(boxed, right).tolist())
    job = jobs[0]
    record = SaliencyResult(
        job.protocol.name,
        tuple(sorted(job.protocol.departures)),
        job.recipe,
        job.seed,
        tuple(job.row.name for job in jobs),
        len(test),
        len(right),
        SIGMA,
        SAMPLES,
        DRAWS,
        VOTES,
        remove_folder(dataset.source),
        len(shown_boxed) > 0,
        shares,
    )
    x, _ = next(batches(test[panel], PANEL, generator=None))
    boxes = None if test.boxes is None else test.boxes[panel]
    return SaliencyFigure(record, x, boxes, {k: found[torch.searchsorted(seen, panel)] for k, found in maps.items()})


def _select_boxed(images: Dataset, numbers: Tensor) -> Tensor:
    """Return those of some images, by number, that have a box."""
    return numbers[:0] if images.boxes is None else numbers[images.boxes[numbers, 0] >= 0]


def _classify_images(model: nn.Module, images: Dataset, seed: int) -> Tensor:
    """Return which images are right: by a vote over the network's noise, if it has any."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    with evaluation_mode(model):
        reset_noise(model, derive_noise_key(seed, "figure 4"))
        chunks = iterate_dataset(images, model_device(model))
        found = score_states(model, chunks, len(images), draws=VOTES, rows=_ROWS * 4)
    return torch.from_numpy(found["vote" if "vote" in found else "off"])


def _compute_maps(model: nn.Module, images: Dataset, seed: int) -> Tensor:
    """Return the saliency (n, H, W) of each image for its true class."""
    generator, device = torch.Generator().manual_seed(seed), model_device(model)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: faster, the same values
    found: list[Tensor] = []
    for x, y in batches(images, _ROWS, generator=None):
        x, y = x.to(device), y.to(device)
        maps = smoothgrad(model, x, y, sigma=SIGMA, samples=SAMPLES, draws=DRAWS, generator=generator)
        found.append(maps.cpu())
    return torch.cat(found)


def measure_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of each map's sum that lies in its box.

    Args:
        maps: (n, H, W), at least 0.
        boxes: (n, 4), columns x0, y0, x1, y1 in pixels; x1 and y1 belong to the box.

    Returns:
        float64, (n,); NaN where a map is zero everywhere.

    Examples:
        >>> measure_inside(torch.ones(1, 4, 4), torch.tensor([[0, 0, 1, 3]]))
        tensor([0.5000], dtype=torch.float64)
    """
    x, y = torch.arange(maps.shape[2]), torch.arange(maps.shape[1])
    x0, y0, x1, y1 = (column.view(-1, 1) for column in boxes.unbind(1))
    mask = ((y >= y0) & (y <= y1)).unsqueeze(2) & ((x >= x0) & (x <= x1)).unsqueeze(1)  # (n, H, W)
    wide = maps.double()
    return (wide * mask).sum((1, 2)) / wide.sum((1, 2))


def _measure_shares(maps: Mapping[str, Tensor], boxes: Tensor, right: list[bool]) -> SaliencyShares:
    area = measure_inside(torch.ones_like(next(iter(maps.values()))), boxes)
    inside: dict[str, tuple[float | None, ...]] = {
        name: tuple(None if math.isnan(v) else round(v, 6) for v in measure_inside(found, boxes).tolist())
        for name, found in maps.items()
    }
    return SaliencyShares(tuple(round(value, 6) for value in area.tolist()), inside, tuple(right))


def tabulate_shares(record: SaliencyResult) -> list[list[str]]:
    """Return for each network the share of saliency inside the box, and its difference from the first network.

    Shares are mean ± std over images; the difference is the mean over the same images with its 95 % interval (Student's
    t). The last columns are those of the images that are right by all networks, and the number of blank maps, which
    have no share; each only if there are any.
    """
    shares = record.shares
    if shares is None:
        return []
    first, right = record.networks[0], shares.right
    right_heading = f"on the {sum(right):,} of these that all get right"
    rows = [["", "saliency inside the box", f"more than {first}", right_heading, "blank maps"]]
    for name, values in {"the box's share of the image": shares.box, **shares.inside}.items():
        is_network = name in shares.inside
        more = _format_difference(record, name, first) if is_network and name != first else ""
        of_right = [value for value, is_right in zip(values, right, strict=True) if is_right]
        blank = f"{values.count(None):,} of {len(values):,}" if is_network else ""
        rows.append([name, _format_mean(values), more, _format_mean(of_right), blank])
    shown = [True, True, True, any(right), shares.has_blank_maps]
    return [[cell for cell, is_shown in zip(row, shown, strict=True) if is_shown] for row in rows]


def _format_mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return str(mean_std(known)) if known else "–"


def _format_difference(record: SaliencyResult, name: str, other: str) -> str:
    found, n = compare_shares(record, name, other), len(_list_differences(record, name, other))
    if found is None or record.shares is None:
        return "–"
    text = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return text if n == len(record.shares.box) else f"{text} (n = {n:,})"


def compare_shares(record: SaliencyResult, name: str, other: str) -> Interval | None:
    """Return the mean difference of two networks' shares on the same images, with its 95 % interval (Student's t).

    Returns:
        None for fewer than two images.
    """
    differences = _list_differences(record, name, other)
    n = len(differences)
    if n < 2:
        return None
    mean = float(np.mean(differences))
    half = float(student_t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half)


def _list_differences(record: SaliencyResult, name: str, other: str) -> list[float]:
    """Return one difference for each image of which neither map is blank."""
    if record.shares is None:
        return []
    pairs = zip(record.shares.inside[name], record.shares.inside[other], strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def format_saliency(record: SaliencyResult) -> str:
    """Return the table of shares, and how the maps were made, as text."""
    if record.shares is None:
        return f"{record.description}\nNo test image has a box, so there is no share of saliency inside it."
    return f"{format_text_table(tabulate_shares(record))}\n{record.description}"


def write_figure_4(found: SaliencyFigure, stem: Path) -> tuple[Path, Path, Path]:
    """Write the panel as `stem`.svg and .png and the result as .json, each atomically."""
    figure = draw_figure_4(found)
    svg, png, data = (stem.with_name(stem.name + suffix) for suffix in (".svg", ".png", ".json"))
    with rc_context({"svg.hashsalt": "figure4", "svg.fonttype": "none"}):
        write_aside(svg, lambda aside: figure.savefig(aside, format="svg", metadata={"Date": None}))
    write_aside(png, lambda aside: figure.savefig(aside, format="png", dpi=120))
    write_aside(data, lambda aside: aside.write_text(format_record(found.record) + "\n", encoding="utf-8"))
    return svg, png, data


def draw_figure_4(found: SaliencyFigure) -> Figure:
    """Return a figure with a row for each image: the image, then its maps, black at 0, white at the 99th percentile."""
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


def read_figure_4(path: Path) -> SaliencyResult:
    """Read the result that `write_figure_4` wrote.

    Raises:
        RunError: the file does not exist, is damaged or not a result of Figure 4.
    """
    try:
        return read_record(path, SaliencyResult)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}); run `noiseprop reproduce figure4` again") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); run `noiseprop reproduce figure4` again") from error


_ENVIRONMENT = Environment(
    loader=PackageLoader("noiseprop", "paper/templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # noqa: S701 - plain text
)
