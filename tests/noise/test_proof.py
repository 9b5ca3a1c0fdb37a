"""Test add_noise on third-party networks, against the record in docs/any-network.md."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "any-network.json"
ROWS: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(RECORD.read_text())}


@pytest.fixture(scope="module")
def script():
    """Import docs/any_network.py, with its folder in the path, as for a script."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("any_network")
    finally:
        sys.path.remove(str(ROOT / "docs"))


def require_package(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{package} is missing, so the proof on its networks cannot run; install noiseprop[proof]")
        pytest.skip(f"{package} is not installed; pip install noiseprop[proof]")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by the import of torch_geometric
@pytest.mark.parametrize("name", ROWS)
def test_noise_is_added_trained_and_removed_without_a_trace(script: Any, name: str):
    (architecture,) = (architecture for architecture in script.ARCHITECTURES if architecture.name == name)
    require_package(architecture.package)
    facts = script.prove(architecture)
    assert facts["layers"] > 0
    assert facts["steps"] >= script.STEPS
    assert facts["finite"]
    assert facts["reached"] == facts["moved"] == facts["layers"]  # every sigma had gradients, and was updated
    assert facts["passes differ"]
    assert facts["samples differ"]
    assert facts["keys stay"]
    assert facts["restored untrained"]
    assert facts["restored trained"]
    assert facts["noise reloaded"]
    assert facts == {key: ROWS[name][key] for key in facts}  # as recorded


def test_the_record_has_these_networks_and_the_pinned_versions(script: Any):
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    extra = re.search(r"^proof = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert extra is not None
    proof = re.findall(r'"([\w-]+)', extra.group(1))
    assert [architecture.name for architecture in script.ARCHITECTURES] == list(ROWS)
    for architecture in script.ARCHITECTURES:
        row, package = ROWS[architecture.name], architecture.package
        for key in ("kind", "package", "where", "granularity"):
            assert row[key] == getattr(architecture, key)
        assert row["version"] == pinned[package]
        assert package in (*proof, "torch")
    assert len({row["package"] for row in ROWS.values()}) >= 6


def test_the_proof_detects_noise_that_remains_or_never_acts(script: Any, monkeypatch: pytest.MonkeyPatch):
    """Leave a sigma behind, and then add noise of sigma 0."""
    (architecture,) = (architecture for architecture in script.ARCHITECTURES if architecture.name == "nn.Transformer")

    def leave_sigma(model: Any) -> None:
        layers = list(script.noise_layers(model).values())
        remove(model)
        model.encoder.norm.register_parameter("left", layers[0].sigma)

    remove = script.remove_noise
    monkeypatch.setattr(script, "remove_noise", leave_sigma)
    with pytest.raises(RuntimeError, match=r"encoder\.norm\.left"):
        script.prove(architecture)
    monkeypatch.undo()
    monkeypatch.setattr(script, "INIT", 0.0)
    model, call = script._built(architecture)
    script._attached(model, architecture, call)
    assert script._noise_acts(model, call) == {"passes differ": False, "samples differ": False}
