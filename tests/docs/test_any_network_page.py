"""docs/any-network.md: its code runs and does what its comments say, its tables are those of results and tests."""

import ast
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import PAGES

from noiseprop import noise_layers
from noiseprop.noise import baselines, objectives

ROOT = Path(__file__).parents[2]
PAGE = PAGES["any-network.md"].read_text()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what skorch imports
def test_its_code_leaves_models_as_its_text_says(ran: Callable[[str], dict[str, Any]]):
    names = ran("any-network.md")
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
        for file in (ROOT / "tests" / "noise").rglob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 30
    assert set(named) <= there


def test_all_objectives_and_baselines_are_named():
    made = [
        name
        for name, value in vars(objectives).items()
        if isinstance(value, type) and value.__module__ == objectives.__name__
    ]
    for name in made:
        assert name == "Objective" or f"| `{name}(" in PAGE
    for name in ("pni", "learn2perturb", "rse", "self_ensemble", "variational_dropout", "DropoutKL", "neftune"):
        assert callable(getattr(baselines, name))
        assert f"baselines.{name}(" in PAGE
