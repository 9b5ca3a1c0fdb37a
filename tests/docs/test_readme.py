"""README.md and the quickstart say what results/ says, and the README's code does what its comments say."""

from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image
from tests.docs.pages import PAGES, blocks, run_page
from tests.scripts import load_script

from noiseprop import noise_layers
from noiseprop.evaluation.statistics import mean_std
from noiseprop.files.records import read_record
from noiseprop.paper.comparison import find_guessing
from noiseprop.paper.demo import DemoRecord
from noiseprop.paper.demo_report import digest_demo
from noiseprop.paper.figure4 import read_figure_4
from noiseprop.paper.results import read_table

ROOT = Path(__file__).parents[2]
README, QUICKSTART = PAGES["README.md"].read_text(), PAGES["quickstart.md"].read_text()


@pytest.fixture(scope="module")
def record():
    return read_record(ROOT / "results" / "demo.json", DemoRecord)


@pytest.fixture(scope="module")
def claims():
    return [read_table(ROOT / "results" / f"table3-{protocol}.json") for protocol in ("paper", "released-code")]


@pytest.fixture(scope="module")
def script():
    return load_script("docs/readme.py")


def test_the_demo_s_table_is_made_from_its_record(script, record):
    assert script.updated(QUICKSTART, script.DEMO_MARK, script.demo_block(record)) == QUICKSTART
    assert script.updated(README, script.DEMO_MARK, script.demo_table(record)) == README
    first, *others = record.models["MLPN"]
    first = msgspec.structs.replace(first, on=msgspec.structs.replace(first.on, pgd=first.on.pgd + 0.1))
    other = msgspec.structs.replace(record, models=record.models | {"MLPN": (first, *others)})
    assert script.updated(QUICKSTART, script.DEMO_MARK, script.demo_block(other)) != QUICKSTART


def test_the_verdicts_are_made_from_the_records(script, claims):
    assert script.updated(README, script.CLAIMS_MARK, script.claims_block(claims)) == README
    swapped = []
    for run in claims[0].runs:  # as if the plain networks were the noisy ones
        name, _, activation = run.row.partition(",")
        row = {"MLP": "MLPN", "MLPN": "MLP"}.get(name, name) + "," + activation
        swapped.append(msgspec.structs.replace(run, row=row))
    other = [msgspec.structs.replace(claims[0], runs=tuple(swapped)), *claims[1:]]
    assert script.updated(README, script.CLAIMS_MARK, script.claims_block(other)) != README


def test_the_picture_is_made_from_the_record(record):
    with Image.open(ROOT / "results" / "demo.png") as picture:
        assert picture.text["Source"] == digest_demo(record)


def test_a_page_without_marks_is_told(script, record):
    with pytest.raises(SystemExit, match="lacks the marks"):
        script.updated("# noiseprop", script.DEMO_MARK, script.demo_block(record))


def test_what_the_readme_reads_from_the_demo_is_there(record):
    def mean(model, state, key):
        return mean_std([getattr(getattr(run, state), key) for run in record.models[model]]).mean

    mlp, fixed, learned = mean("MLP", "on", "clean"), mean("MLP+", "on", "clean"), mean("MLPN", "on", "clean")
    assert fixed < learned < mlp  # noise costs clean accuracy, and learning it gives a part back
    mlp, fixed, learned = mean("MLP", "on", "pgd"), mean("MLP+", "on", "pgd_eot"), mean("MLPN", "on", "pgd_eot")
    assert mlp < learned < fixed  # it buys some under attack, and learning it gives a part back
    for model in ("MLP+", "MLPN"):
        assert mean(model, "off", "pgd") - mlp > (mean(model, "on", "pgd_eot") - mlp) / 2  # most of it with noise off
    assert all(curve[-1] < 1 for run in record.models["MLPN"] for curve in run.sigma.values())


def test_the_code_does_what_its_comments_say(tmp_path):
    (code,) = (block.code for block in blocks(PAGES["README.md"]) if block.kind == "python")
    assert sum(line.endswith("# +") for line in code.splitlines()) <= 10
    (tmp_path / "page.md").write_text(f"```python\n{code}```\n")
    names = run_page(tmp_path / "page.md", tmp_path)
    assert names["one"].shape == names["silent"].shape == (128, 10)
    assert names["many"].shape == (20, 128, 10)
    assert not torch.equal(names["many"][0], names["many"][1])
    sigma = noise_layers(names["model"])["1.noise"].sigma
    assert (sigma != 1).all()
    model, x = names["model"], names["x"]
    plain = torch.relu(torch.nn.functional.linear(x.flatten(1), model[1].weight, model[1].bias))
    torch.testing.assert_close(names["silent"], torch.nn.functional.linear(plain, model[3].weight, model[3].bias))


def test_what_it_says_of_the_resnets_is_in_the_results():
    five, six = (read_table(*(ROOT / "results").glob(f"table{number}-paper-*.json")) for number in (5, 6))
    says = " ".join(README.split())
    assert (
        "five epochs of the ResNet18s, and four epochs of the ResNet34s on a part of Tiny-ImageNet, after which" in says
    )
    assert (five.epochs, find_guessing(five)) == (5, [])
    assert (six.epochs, find_guessing(six)) == (4, ["ResNet34-A+", "ResNet34-AN"])
    figure = read_figure_4(ROOT / "results" / "figure4-paper-fast-4.json")
    assert "No image is classified correctly by all five, as Figure 4 would need." in says
    assert (figure.recipe, figure.right_by_all) == (six.recipe, 0)
