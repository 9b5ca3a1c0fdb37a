import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from tests.report.made_up import evaluation, make_run, page

from noiseprop.errors import RunError
from noiseprop.evaluation.results import Finding
from noiseprop.evaluation.serialization import write_evaluation
from noiseprop.evaluation.settings import ATTACKS, CORRUPTIONS, TRANSFERS
from noiseprop.report.eps_curve import Curve
from noiseprop.report.network_views import EXAMPLES_IN_ALL, Example, ExampleVersion, NetworkView, Sigma, view_networks
from noiseprop.report.page import REPORT_MARK, check_report_path, render_report, write_report
from noiseprop.report.run_groups import group_runs, read_run

EVIL = "<img src=x onerror=alert(1)>\"'</script><script>alert(1)</script>"


class Page(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def whole(folders):
    return page(*folders, images=4)


def test_nothing_in_the_page_asks_for_anything_outside(whole):
    assert "http://" not in whole
    assert "https://" not in whole
    for _, attributes in Page(whole).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(", whole)


def test_links_lead_to_what_is_there_and_ids_are_used_once(whole):
    tags = Page(whole).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for tag, a in tags if tag == "a"]
    assert set(links) <= set(ids)
    assert {"accuracy", "eps", "corruptions", "training", "noise", "examples", "comparison", "runs"} <= set(links)


def test_figures_of_the_table_are_those_of_the_evaluations(whole):
    text = "".join(Page(whole).texts)
    assert f"{evaluation('MLPN', 0).accuracy('pgd'):.3f}" in text
    assert "single step" in text
    assert "A single step is stronger than many." in text


def test_equal_runs_give_equal_pages(whole, folders):
    assert page(*folders, images=4) == whole


def test_every_picture_says_what_it_shows(whole):
    pictures = [a for tag, a in Page(whole).tags if tag == "img"]
    assert len(pictures) > 3 * 5 * 9
    assert all(picture["alt"] for picture in pictures)


def test_names_and_sentences_are_shown_as_text(tmp_path):
    name = EVIL.replace("/", "_")
    e = replace(
        evaluation("MLPN", 0, findings=(Finding(EVIL, "failed", {}, EVIL),)),
        dataset=EVIL,
        about={EVIL: EVIL, "surrogate": EVIL},
        versions={EVIL: EVIL},
    )

    def change(settings):
        settings["model"]["name"] = EVIL
        settings["extra"][EVIL] = EVIL

    plain = make_run(tmp_path / "plain", "MLP")
    folder = make_run(tmp_path / name, change=change, judged=e)
    line = (folder / "metrics.jsonl").read_text().replace("fc1.noise", EVIL.replace('"', ""))
    (folder / "metrics.jsonl").write_text(line)
    (folder / "model.safetensors").write_bytes(b"<script>")
    text = page(plain, folder, images=1)
    found = Page(text)
    scripts = [tag for tag, _ in found.tags if tag == "script"]
    assert len(scripts) == 1
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert not any(attributes.get("src") == "x" for _, attributes in found.tags)
    assert EVIL in "".join(found.texts)


def test_long_texts_are_cut(tmp_path):
    e = replace(evaluation("MLP", 0), about={"model": "x" * 1_000_000})
    assert len(page(make_run(tmp_path / "run", "MLP", judged=e))) < 300_000


def test_a_run_of_which_only_settings_are_left_has_a_page(tmp_path):
    folder = make_run(tmp_path / "run", judged=None)
    for name in ("metrics.jsonl", "model.safetensors"):
        (folder / name).unlink()
    text = "".join(Page(page(folder, images=4)).texts)
    assert "was not evaluated" in text
    assert "model.safetensors is missing" in text
    assert "noiseprop train --model MLPN" in text


def test_only_reports_are_replaced(tmp_path, folders):
    groups = group_runs([read_run(folders[0])])
    looks = view_networks(groups, data_dir=None, images=0)
    target = tmp_path / "report.html"
    write_report(groups, looks, target)
    first = target.read_text()
    assert REPORT_MARK in first[:200]
    write_report(groups, looks, target)
    assert target.read_text() == first
    target.write_text("<!doctype html><p>mine")
    with pytest.raises(RunError, match="was not written by `noiseprop report` and would be lost"):
        write_report(groups, looks, target)
    assert target.read_text() == "<!doctype html><p>mine"
    with pytest.raises(RunError, match="would be lost"):
        check_report_path(tmp_path)


def test_a_grid_of_thirty_runs_stays_under_five_megabytes(grid):
    assert grid.stat().st_size < 5_000_000
    found = Page(grid.read_text())
    assert sum(tag == "details" and a.get("class") == "run" for tag, a in found.tags) == 30


def test_so_does_a_grid_of_the_largest_networks_on_the_largest_images(thirty):
    """Images of noise compress to nothing smaller; sigma has the shapes of ResNet34 with noise everywhere."""
    groups = group_runs([read_run(folder) for folder in thirty])
    rng = torch.Generator().manual_seed(0)
    count = max(1, EXAMPLES_IN_ALL // len(groups))
    names = ("clean", *ATTACKS, *CORRUPTIONS)
    examples = tuple(
        Example(
            "goldfish",
            tuple(ExampleVersion(name, torch.rand(3, 64, 64, generator=rng), "axolotl", 0.5, False) for name in names),
            torch.rand(64, 64, generator=rng),
        )
        for _ in range(count)
    )
    shapes = (
        [(64, 32, 32)] * 3 + [(128, 16, 16)] * 4 + [(256, 8, 8)] * 6 + [(512, 4, 4)] * 3 + [(1024,), (512,), (200,)]
    )
    sigmas = tuple(Sigma(f"layer {i}", torch.rand(shape, generator=rng)) for i, shape in enumerate(shapes))
    row = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    curve = Curve((0, 0.1, 0.2, 0.3, 0.4, 0.5), dict.fromkeys((*ATTACKS, *TRANSFERS), row), 50, 20, 32)
    first, other = NetworkView(curve, sigmas, examples, 32), NetworkView(curve, (), (), 32)
    looks = {run.path: first if run is group.runs[0] else other for group in groups for run in group.runs}
    text = render_report(groups, looks)
    assert text.count("<img") > 10 * (count * 9 + 16 * 2)
    assert len(text) < 5_000_000


@pytest.fixture
def copied(tmp_path, folders):
    return shutil.copytree(folders[2], tmp_path / "copy")


def test_the_curve_is_kept_beside_the_run_and_read_again(copied, monkeypatch):
    first = page(copied, images=4)
    assert (copied / "curve.json").exists()
    monkeypatch.setattr("noiseprop.report.eps_curve._measure_accuracies", None)
    assert page(copied, images=4) == first


def test_other_figures_make_another_page(copied):
    first = page(copied)
    write_evaluation(evaluation("MLPN", 7), copied / "evaluation.json")
    assert page(copied) != first
