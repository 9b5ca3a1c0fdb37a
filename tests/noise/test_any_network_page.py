"""docs/any-network.md: its code runs and does what its comments say, its tables are those of results and tests."""

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from noiseprop import noise_layers
from noiseprop.noise import objectives, presets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "any-network.md").read_text()
_SKORCH = "<!-- needs skorch -->\n"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what skorch imports
def test_the_code_runs_and_prints_what_its_comments_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page, mark, rest = PAGE.partition(_SKORCH)
    code = blocks(page)
    if importlib.util.find_spec("skorch") or os.environ.get("CI") == "true":
        assert mark
        code += blocks(rest)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in code:
            exec(compile(block, "any-network.md", "exec"), names)
    said = printed.getvalue()
    for expected in (
        "{'0.noise': (8, 28, 28), '5.noise': (32,), '7.noise': (10,)}\n",
        "\n2\n",
        "\ntorch.Size([20, 8])\n",
    ):
        assert expected in said
        assert f"# {expected.strip()}" in PAGE
    assert "sigma / own std" in said  # the table of inspect
    assert (tmp_path / "noise.png").stat().st_size > 5000
    assert not list(noise_layers(names["other"]))
    assert list(noise_layers(names["model"])) == ["0.noise", "5.noise", "7.noise"]
    starts = {"0.noise": 1, "5.noise": 0.3, "7.noise": 0.3}
    assert all((layer.sigma != starts[path]).all() for path, layer in noise_layers(names["model"]).items())
    assert names["model"][5].noise.mu is not None
    assert names["signs"][1].weight.grad.abs().sum() > 0
    assert names["probabilities"].shape == (16, 10)
    if "pipeline" in names:
        assert all((layer.sigma != 1).all() for layer in noise_layers(names["table_net"]).values())


def test_the_table_of_networks_is_made_from_the_record():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        script = importlib.import_module("any_network")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    rows = json.loads((ROOT / "results" / "any-network.json").read_text())
    assert script.updated(PAGE, rows) == PAGE
    rows[0]["restored trained"] = False
    assert script.updated(PAGE, rows) != PAGE
    with pytest.raises(SystemExit, match="lacks the marks"):
        script.updated("# Noise", rows)


def test_each_kind_of_module_names_a_test_that_there_is():
    there = {
        node.name
        for file in (ROOT / "tests" / "noise").glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 30
    assert set(named) <= there


def test_all_objectives_and_presets_are_named():
    made = [
        name
        for name, value in vars(objectives).items()
        if isinstance(value, type) and value.__module__ == objectives.__name__
    ]
    for name in made:
        assert name == "Objective" or f"| `{name}(" in PAGE
    for name in ("pni", "learn2perturb", "rse", "self_ensemble", "variational_dropout", "DropoutKL", "neftune"):
        assert callable(getattr(presets, name))
        assert f"presets.{name}(" in PAGE
