import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel
from torch import nn
from torch.nn import functional

from noiseprop.cli import main
from noiseprop.data import Dataset, load, split
from noiseprop.errors import RunError
from noiseprop.evaluation.scoring import derive_noise_key
from noiseprop.files.checksum import add_checksum
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise
from noiseprop.paper import figure4, run_job
from noiseprop.paper.comparison import find_guessing
from noiseprop.paper.figure4 import (
    SaliencyFigure,
    SaliencyResult,
    compute_saliency,
    draw_figure_4,
    format_saliency,
    measure_inside,
    read_figure_4,
    tabulate_shares,
    write_figure_4,
)
from noiseprop.paper.job import TableSpec
from noiseprop.paper.page import render_page
from noiseprop.paper.results import TableResult, read_table
from noiseprop.paper.run_job import load_trained
from noiseprop.paper.specs import TABLES, choose_protocol
from noiseprop.saliency import smoothgrad

pytestmark = [
    pytest.mark.usefixtures("small_resnets", "own_cache"),
    pytest.mark.filterwarnings("ignore:.*draws cannot share what comes before the noise"),
]
EPOCHS = 3
RESULTS = Path(__file__).parents[2] / "results"


def page(tables: list[TableResult], figures: dict[str, SaliencyResult]) -> str:
    return render_page(tables, figures)


def change_shares(record: SaliencyResult, **changes: Any) -> SaliencyResult:
    return msgspec.structs.replace(record, shares=msgspec.structs.replace(record.shares, **changes))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure4, "SAMPLES", 4)
        patch.setattr(figure4, "VOTES", 3)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plan(tmp_path_factory, image_dir) -> TableSpec:
    """All five networks, trained for a moment and not judged."""
    root = tmp_path_factory.mktemp("runs")
    this = TableSpec(
        "table6",
        choose_protocol("paper", table="table6"),
        "tiny-imagenet",
        image_dir,
        EPOCHS,
        "fp32",
        "fast",
        1000,
        root,
    )
    for job in this.make_jobs(TABLES["table6"], 1):
        run_job.train_network(job, lambda done, total, what: None)
    return this


@pytest.fixture(scope="module")
def seen(plan):
    """With every image taken for right, whatever the networks say of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            figure4, "_classify_images", lambda model, images, seed: torch.ones(len(images), dtype=torch.bool)
        )
        return compute_saliency(plan.make_jobs(TABLES["table6"], 1))


def test_inside_counts_the_pixels_of_the_box():
    maps = torch.arange(16.0).view(1, 4, 4).repeat(2, 1, 1)
    boxes = torch.tensor([[1, 2, 2, 3], [0, 0, 3, 3]])
    assert measure_inside(maps, boxes).tolist() == pytest.approx([(9 + 10 + 13 + 14) / 120, 1.0])
    assert measure_inside(torch.zeros(1, 4, 4), boxes[:1]).isnan().all()


def test_a_network_without_noise_is_right_where_its_largest_logit_is_the_label_s(plan):
    job, test = plan.make_jobs(TABLES["table6"], 1)[0], split(load("tiny-imagenet", plan.data_dir)).test
    model = load_trained(job).eval()
    with torch.no_grad():
        said = model(test.images.float() / 255).argmax(1)
    assert job.row.name == "ResNet34"
    for labels in (said, said.where(torch.arange(8) % 3 == 0, (said + 1) % 3)):
        assert torch.equal(figure4._classify_images(model, replace(test, labels=labels), 0), said == labels)


def test_a_network_with_noise_is_right_where_most_of_its_draws_say_the_label(plan):
    job, test = plan.make_jobs(TABLES["table6"], 1)[4], split(load("tiny-imagenet", plan.data_dir)).test
    model, images = load_trained(job).eval(), test.images.float() / 255
    reset_noise(model, derive_noise_key(0, "figure 4"))
    with torch.no_grad(), sampling(model, "fresh", draws=figure4.VOTES):
        said = model(images).argmax(-1)  # (draws, 8)
    counts = functional.one_hot(said).sum(0)
    sure = counts.max(1).values * 2 > figure4.VOTES
    assert job.row.name == "ResNet34-AN"
    assert sure.any()
    assert (counts.max(1).values < figure4.VOTES).any()  # a single draw says something else
    labels = counts.argmax(1)
    found = figure4._classify_images(model, replace(test, labels=labels), 0)
    assert torch.equal(found[sure], torch.ones_like(found[sure]))
    assert not figure4._classify_images(model, replace(test, labels=(labels + 1) % 3), 0)[sure].any()


RIGHT = ("01234567", "0134567", "1234567", "013467", "134567")  # of eight images, by network: all are on 1, 3, 4, 6, 7


@pytest.fixture
def judged(plan, monkeypatch):
    """Looks, with boxes on some of the test images, through networks that are right on known ones.

    What comes back is the look and, for each network, which images its maps are of.
    """

    def look_at(right: Sequence[str], boxed: str | None) -> tuple[SaliencyFigure, list[list[int]]]:
        whole = split(load("tiny-imagenet", plan.data_dir))
        boxes = None
        if boxed is not None:
            has_box = torch.tensor([str(i) in boxed for i in range(8)])
            boxes = whole.test.boxes.where(has_box.unsqueeze(1), -1)
        number = {image.numpy().tobytes(): i for i, image in enumerate(whole.test.images)}
        known, mapped = iter(right), []

        def numbers(images: Dataset) -> list[int]:
            return [number[image.numpy().tobytes()] for image in images.images]

        def correct(model: nn.Module, images: Dataset, seed: int) -> torch.Tensor:
            said = next(known)
            return torch.tensor([str(i) in said for i in numbers(images)], dtype=torch.bool)

        def maps(model: nn.Module, images: Dataset, seed: int) -> torch.Tensor:
            mapped.append(numbers(images))
            return torch.stack([torch.full((64, 64), float(i)) for i in numbers(images)])

        monkeypatch.setattr(figure4, "split", lambda dataset: replace(whole, test=replace(whole.test, boxes=boxes)))
        monkeypatch.setattr(figure4, "_classify_images", correct)
        monkeypatch.setattr(figure4, "_compute_maps", maps)
        return compute_saliency(plan.make_jobs(TABLES["table6"], 1)), mapped

    return look_at


@pytest.mark.parametrize(
    ("boxed", "most", "panel", "looked"),
    [
        ("01234567", 250, [1, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        ("124567", 250, [1, 4], [1, 2, 4, 5, 6, 7]),
        ("124567", 3, [1, 4], [1, 2, 4]),
        ("025", 250, [1, 3], [0, 2, 5]),  # of those that are right none has a box
        ("6", 250, [6], [6]),
        (None, 250, [1, 3], []),
    ],
)
def test_the_panel_is_of_images_right_by_all_and_the_shares_are_of_images_with_a_box(
    judged, plan, monkeypatch, boxed, most, panel, looked
):
    monkeypatch.setattr(figure4, "BOXED", most)
    monkeypatch.setattr(figure4, "PANEL", 2)
    test = split(load("tiny-imagenet", plan.data_dir)).test
    found, mapped = judged(RIGHT, boxed)
    assert mapped == [sorted({*looked, *panel})] * 5
    assert found.record.right_by_all == 5
    assert torch.equal(found.images, test.images[panel].float() / 255)
    assert [maps[:, 0, 0].tolist() for maps in found.maps.values()] == [panel] * 5
    assert (found.record.shares is not None) == bool(looked)
    if looked:
        assert len(found.record.shares.box) == len(looked)
        assert list(found.record.shares.right) == [number in (1, 3, 4, 6, 7) for number in looked]
        expected = measure_inside(torch.ones(len(looked), 64, 64), test.boxes[looked]).tolist()
        expected = [share if number else None for number, share in zip(looked, expected, strict=True)]  # map 0 is blank
        assert list(found.record.shares.inside["ResNet34-AN"]) == pytest.approx(expected, abs=1e-6)
        assert torch.equal(found.boxes.clamp_min(0), test.boxes[panel].where(found.boxes >= 0, 0))
        assert [int(box[0]) >= 0 for box in found.boxes] == [str(number) in boxed for number in panel]
    where = " that have a box" if found.record.panel_has_boxes else ""
    assert bool(where) == (boxed not in (None, "025"))
    assert f"5 of 8; the panel shows the first of them{where}." in found.record.description


@pytest.mark.parametrize(
    ("boxed", "panel", "words"),
    [("257", [2, 5], "the first images that have a box."), (None, [0, 1], "the first images.")],
)
def test_where_no_image_is_right_by_all_the_panel_says_so(judged, monkeypatch, boxed, panel, words):
    monkeypatch.setattr(figure4, "PANEL", 2)
    found, mapped = judged(("01234567", "0246", "01234567", "1357", "01234567"), boxed)
    assert mapped[0][:2] == panel
    assert found.record.right_by_all == 0
    told = found.record.description
    assert "Test images right by all 5 networks (random ones by a vote of 3 draws): 0 of 8; so the panel shows" in told
    assert f"so the panel shows {words}" in told
    if boxed:
        assert list(found.record.shares.right) == [False] * 3
        assert all(len(row) == 3 for row in tabulate_shares(found.record))


def test_the_record_says_what_was_done(seen, plan):
    record = seen.record
    assert list(record.networks) == [row.name for row in TABLES["table6"]]
    assert (record.sigma, record.samples, record.draws, record.vote_draws) == (0.15, 4, 1, 3)
    assert record.recipe.name == "fast"
    assert record.test_images == record.right_by_all == 8
    assert "with 30 of 500 training images a class" in record.source
    assert {len(values) for values in record.shares.inside.values()} == {8}
    area = 32 * 32 / 64**2
    assert list(record.shares.box) == [area] * 8
    assert msgspec.json.decode(msgspec.json.encode(record), type=SaliencyResult) == record


@pytest.mark.parametrize("name", ["ResNet34", "ResNet34-AN"])
def test_shares_are_those_of_smoothgrad(seen, plan, name):
    test = split(load("tiny-imagenet", plan.data_dir)).test
    model = load_trained(next(job for job in plan.make_jobs(TABLES["table6"], 1) if job.row.name == name))
    x, y = test.images.float() / 255, test.labels
    maps = smoothgrad(model, x, y, samples=4, generator=torch.Generator().manual_seed(0))  # one draw a copy
    np.testing.assert_allclose(
        list(seen.record.shares.inside[name]), measure_inside(maps, test.boxes), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(seen.maps[name], maps[:5], rtol=1e-3, atol=1e-7)
    if name == "ResNet34-AN":
        with sampling(model, "off"):
            silent = smoothgrad(model, x, y, samples=4, generator=torch.Generator().manual_seed(0))
        assert not np.allclose(
            list(seen.record.shares.inside[name]), measure_inside(silent, test.boxes), rtol=0, atol=1e-2
        )


def test_the_table_compares_the_same_images(seen):
    head, box, *rows = tabulate_shares(seen.record)
    assert head == ["", "saliency inside the box", "more than ResNet34", "on the 8 of these that all get right"]
    assert box[1] == "0.250 ± 0.000"
    assert [row[0] for row in rows] == list(seen.record.networks)
    values = {name: np.array(found) for name, found in seen.record.shares.inside.items()}
    assert rows[1][1] == f"{values['ResNet34-MLP+'].mean():.3f} ± {values['ResNet34-MLP+'].std(ddof=1):.3f}"
    test = ttest_rel(values["ResNet34-AN"], values["ResNet34"])
    low, high = test.confidence_interval(0.95)
    mean = (values["ResNet34-AN"] - values["ResNet34"]).mean()
    assert rows[4][2] == f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert rows[1][3] == rows[1][1]
    few = change_shares(seen.record, right=(True, True, *[False] * 6))
    assert tabulate_shares(few)[0][3] == "on the 2 of these that all get right"
    assert tabulate_shares(few)[5][1:3] == rows[3][1:3]
    two = values["ResNet34-MLPN"][:2]
    assert tabulate_shares(few)[5][3] == f"{two.mean():.3f} ± {two.std(ddof=1):.3f}"
    assert "Shares inside the box: of the first 8 with a box, right or wrong." in seen.record.description
    assert "the fast recipe, not the paper's" in format_saliency(seen.record)


def test_the_panel_has_a_column_for_each_network_and_repeats_to_the_byte(seen, tmp_path):
    figure = draw_figure_4(seen)
    titles = [axes.get_title() for axes in figure.axes[:6]]
    assert titles == ["image", *(row.name for row in TABLES["table6"])]
    assert len(figure.axes) == 5 * 6
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown, seen.images[0].permute(1, 2, 0))
    assert np.allclose(figure.axes[6 + 1].images[0].get_array(), seen.maps["ResNet34"][1])
    (box,) = figure.axes[0].patches
    x0, y0 = seen.boxes[0][:2].tolist()
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (x0 - 0.5, y0 - 0.5, 32, 32)
    first, second = (write_figure_4(seen, tmp_path / name) for name in ("one", "two"))
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [True] * 3
    assert not re.search("<dc:date>", first[0].read_text())
    with Image.open(first[1]) as picture:
        assert picture.size[0] > 900
    assert read_figure_4(first[2]) == seen.record
    text = page([], {"figure4-paper-fast-3": seen.record})
    assert "![Images and saliency maps of ResNet34, ResNet34-MLP+" in text
    assert "(../results/figure4-paper-fast-3.svg)" in text
    assert f"| {tabulate_shares(seen.record)[2][0]} |" in text
    assert "`noiseprop reproduce figure4 --recipe fast --epochs 3 --precision fp32`" in text
    assert "Here it stays open whether ResNet34-MLPN looks more at it and it stays open whether ResNet34-AN" in text
    more = {"ResNet34": (0.1, 0.2) * 4, "ResNet34-MLPN": (0.2, 0.4) * 4, "ResNet34-AN": (0.0, 0.1) * 4}
    text = page([], {"x": change_shares(seen.record, inside=seen.record.shares.inside | more)})
    assert "Here ResNet34-MLPN looks more at it than ResNet34 and ResNet34-AN looks less at it than ResNet34." in text


def test_blank_maps_are_counted_and_have_no_share(seen, tmp_path):
    shares = seen.record.shares.inside
    changed = {"ResNet34-A+": (None,) * 8, "ResNet34-AN": (None, None, *shares["ResNet34-AN"][2:])}
    blank = change_shares(seen.record, inside=shares | changed)
    table = {row[0]: row[1:] for row in tabulate_shares(blank)}
    assert table[""][-1] == "blank maps"
    assert table["the box's share of the image"][-1] == ""
    assert [table[name][-1] for name in ("ResNet34", "ResNet34-A+", "ResNet34-AN")] == ["0 of 8", "8 of 8", "2 of 8"]
    assert table["ResNet34-A+"][:3] == ["–", "–", "–"]
    last = np.array(shares["ResNet34-AN"][2:])
    assert table["ResNet34-AN"][0] == f"{last.mean():.3f} ± {last.std(ddof=1):.3f}"
    test = ttest_rel(last, shares["ResNet34"][2:])
    low, high = test.confidence_interval(0.95)
    assert table["ResNet34-AN"][1].endswith(f" [{low:+.3f}, {high:+.3f}] (n = 6)")
    *_, path = write_figure_4(replace(seen, record=blank), tmp_path / "figure4-x")
    assert read_figure_4(path) == blank
    text = page([], {"x": blank})
    assert "| ResNet34-A+ | – | – | – | 8 of 8 |" in text
    assert "A blank map is 0 everywhere: the logit" in text
    assert "blank" not in page([], {"x": seen.record})


def test_networks_that_have_not_learned_are_named(seen):
    (path,) = RESULTS.glob("table6-*.json")
    table = read_table(path)
    idle = find_guessing(table)
    assert idle == ["ResNet34-A+", "ResNet34-AN"]
    same = msgspec.structs.replace(seen.record, protocol=table.protocol, recipe=table.recipe, source=table.data.source)
    text = page([table], {"x": same})
    assert "By Table 6, ResNet34-A+ and ResNet34-AN are not shown to do better than guessing; a map" in text
    assert "ResNet34-MLPN looks" in text
    assert "ResNet34-AN looks" not in text
    assert "By Table 6," not in page([table], {"x": seen.record})
    (noisy,) = table.find_runs("ResNet34-A+")
    guess = msgspec.structs.replace(noisy, row="ResNet34")
    text = page([msgspec.structs.replace(table, runs=(guess,))], {"x": same})  # the network to compare with guesses
    assert "By Table 6, ResNet34 is not shown" in text
    assert "No network here can show this, because too few have learned or have maps." in text


def test_without_boxes_there_is_a_panel_and_no_share(plan, monkeypatch):
    original = figure4.load

    def without(name: str, data_dir: Path | None) -> Any:
        return replace(original(name, data_dir), boxes=None)

    monkeypatch.setattr(figure4, "load", without)
    monkeypatch.setattr(
        figure4, "_classify_images", lambda model, images, seed: torch.ones(len(images), dtype=torch.bool)
    )
    found = compute_saliency(plan.make_jobs(TABLES["table6"][:2], 1))
    assert found.record.shares is None
    assert "No test image has a box" in format_saliency(found.record)
    assert len(draw_figure_4(found).axes) == 5 * 3
    assert "saliency inside the box" not in page([], {"x": found.record})


def test_the_command_draws_and_tells(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        figure4, "_classify_images", lambda model, images, seed: torch.ones(len(images), dtype=torch.bool)
    )
    options = ["--recipe", "fast", "--epochs", str(EPOCHS), "--data-dir", str(plan.data_dir)]
    folders = ["--runs", str(plan.root), "--out", str(tmp_path)]
    assert main(["reproduce", "figure4", *options, *folders]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"figure4-paper-fast-3.{suffix}" for suffix in ("json", "png", "svg")
    ]
    assert "saliency inside the box" in capsys.readouterr().out
    empty = ["--runs", str(tmp_path / "nothing"), "--out", str(tmp_path)]
    assert main(["reproduce", "figure4", *options, *empty]) == 1
    assert "ResNet34, seed 0 is not trained yet; redo its table first" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', '{"format": "noiseprop saliency"}'])
def test_a_foreign_file_is_one_sentence(content, tmp_path):
    path = tmp_path / "figure4-x.json"
    path.write_text(content)
    with pytest.raises(RunError, match="run `noiseprop reproduce figure4` again"):
        read_figure_4(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"networks": ["ResNet34", "ResNet34-AN"]}, "it has shares of other networks than it names"),
        ({"shares": {"right": [True]}}, "it has shares of different numbers of images"),
        ({"shares": {"right": [1] * 8}}, r"Expected `bool`, got `int` - at `\$.shares.right\[0\]`"),
        ({"right_by_all": 7}, "it has more images right by all than there are"),
    ],
)
def test_figures_at_odds_are_told(seen, tmp_path, change, says):
    path = tmp_path / "figure4-x.json"
    document = json.loads(msgspec.json.encode(seen.record))
    changed = document | change | {"shares": document["shares"] | change.get("shares", {})}
    path.write_text(json.dumps(add_checksum(changed)))
    with pytest.raises(RunError, match=says):
        read_figure_4(path)


def test_a_changed_figure_is_told(seen, tmp_path):
    *_, path = write_figure_4(seen, tmp_path / "figure4-x")
    record = read_figure_4(path)
    assert record == seen.record
    name = record.networks[1]
    changed = json.loads(path.read_text())
    changed["shares"]["inside"][name][0] = round(changed["shares"]["inside"][name][0] / 2, 6)
    path.write_text(json.dumps(changed))
    with pytest.raises(RunError, match="its checksum does not match"):
        read_figure_4(path)
