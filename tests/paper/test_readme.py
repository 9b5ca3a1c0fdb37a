"""README.md says what results/demo.json says, and its code runs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from noiseprop import noise_layers
from noiseprop.evaluation.statistics import mean_std
from noiseprop.paper.demo import FORMAT
from noiseprop.paper.demo_picture import digest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def record():
    return json.loads((ROOT / "results" / "demo.json").read_text())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_made_from_the_record(script, record):
    assert record["format"] == FORMAT
    assert script.updated(README, record) == README
    other = json.loads(json.dumps(record))
    other["models"]["MLPN"][0]["on"]["pgd"] += 0.1
    assert script.updated(README, other) != README


def test_the_picture_is_made_from_the_record(record):
    with Image.open(ROOT / "results" / "demo.png") as picture:
        assert picture.text["Source"] == digest(record)


def test_a_readme_without_marks_is_told(script, record):
    with pytest.raises(SystemExit, match="lacks the marks"):
        script.updated("# noiseprop", record)


def test_what_the_readme_reads_from_the_table_is_there(record):
    def mean(model, state, key):
        return mean_std([run[state][key] for run in record["models"][model]]).mean

    mlp, fixed, learned = mean("MLP", "on", "clean"), mean("MLP+", "on", "clean"), mean("MLPN", "on", "clean")
    assert fixed < learned < mlp  # noise costs clean accuracy, and learning it gives a part back
    mlp, fixed, learned = mean("MLP", "on", "pgd"), mean("MLP+", "on", "pgd-eot"), mean("MLPN", "on", "pgd-eot")
    assert mlp < learned < fixed  # it buys some under attack, and learning it gives a part back
    for model in ("MLP+", "MLPN"):
        assert mean(model, "off", "pgd") - mlp > (mean(model, "on", "pgd-eot") - mlp) / 2  # most of it with noise off
    assert all(curve[-1] < 1 for run in record["models"]["MLPN"] for curve in run["sigma"].values())


def test_the_code_runs_and_does_what_its_comments_say():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert sum(line.endswith("# +") for line in code.splitlines()) <= 10
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), names)
    assert names["one"].shape == names["silent"].shape == (128, 10)
    assert names["many"].shape == (20, 128, 10)
    assert not torch.equal(names["many"][0], names["many"][1])
    sigma = noise_layers(names["model"])["1.noise"].sigma
    assert (sigma != 1).all()
    model, x = names["model"], names["x"]
    plain = torch.relu(torch.nn.functional.linear(x.flatten(1), model[1].weight, model[1].bias))
    torch.testing.assert_close(names["silent"], torch.nn.functional.linear(plain, model[3].weight, model[3].bias))


def test_its_commands_exist():
    from noiseprop.cli import COMMANDS

    for command in re.findall(r"^\$ noiseprop (\w+)", README, re.MULTILINE):
        assert command in COMMANDS
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
