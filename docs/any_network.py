"""Test add_noise on models of other packages, and write the results: `python docs/any_network.py`.

Each of docs/architectures.py is given noise, trained for some steps and freed of it again, beside a copy that is left
untouched. The facts go to results/any-network.json, and from there into the table in docs/any-network.md.
"""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, Architecture, Call, float_leaves
from torch import Tensor, nn

from noiseprop import (
    NeuronNoise,
    SigmaAdam,
    add_noise,
    before,
    load_noise,
    noise_layers,
    remove_noise,
    reset_noise,
    sampling,
    save_noise,
    sigmas,
    weights,
)

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "results" / "any-network.json", ROOT / "docs" / "any-network.md"
BEGIN, END = "<!-- made by docs/any_network.py from results/any-network.json -->", "<!-- end -->"
INIT, STEPS = 0.1, 4


def prove(architecture: Architecture) -> dict[str, Any]:
    """Return the facts of one architecture: numbers of noise layers, and true or false statements."""
    untouched, call = _built(architecture)
    keys, answers = list(untouched.state_dict()), _answers(untouched, call)

    model, _ = _built(architecture)
    own = _identity(model)
    layers = _attached(model, architecture, call)
    facts: dict[str, Any] = {"layers": len(layers), "sigmas": sum(x.sigma.numel() for x in layers.values())}
    facts |= _noise_acts(model, call)
    facts["keys stay"] = [key for key in model.state_dict() if ".noise." not in f".{key}"] == keys
    remove_noise(model)
    facts["restored untrained"] = _identity(model) == own and _equal(_answers(model, call), answers)

    model, _ = _built(architecture)
    own = _identity(model)
    _attached(model, architecture, call)
    facts |= _train(model, architecture, call)
    noisy, file = _keep_noise(model, call)
    remove_noise(model)
    untouched.load_state_dict(model.state_dict())  # strictly: the keys are the same
    load_noise(untouched, file, key=1)
    file.unlink()
    facts["noise reloaded"] = _equal(_noisy_answer(untouched, call), noisy)
    remove_noise(untouched)
    facts["restored trained"] = _identity(model) == own and _equal(_answers(model, call), _answers(untouched, call))
    return facts


def _built(architecture: Architecture) -> tuple[nn.Module, Call]:
    """Build the same model and example every time, and call the model once: some initialise in their first call."""
    torch.manual_seed(0)
    call = architecture.example()
    model = architecture.build()
    with torch.no_grad():
        _run(model.eval(), call)
    return model, call


def _run(model: nn.Module, call: Call) -> Any:
    return model(**call) if isinstance(call, dict) else model(*call)


def _attached(model: nn.Module, architecture: Architecture, call: Call) -> dict[str, NeuronNoise]:
    where = eval(architecture.where, {"nn": nn, "before": before})  # noqa: S307 - written in this folder
    add_noise(
        model,
        where,
        granularity=architecture.granularity,
        init=INIT,
        example=call,
    )
    return noise_layers(model)


@torch.no_grad()
def _noise_acts(model: nn.Module, call: Call) -> dict[str, bool]:
    """Check that equal samples have equal outputs only without noise, and that two noisy passes differ."""
    one, other = float_leaves(_run(model, call)), float_leaves(_run(model, call))
    with sampling(model, "off"):
        silent = float_leaves(_run(model, call))
    return {
        "passes differ": not torch.equal(one[0], other[0]),
        "samples differ": _twins_agree(silent) and not _twins_agree(one),
    }


def _twins_agree(outputs: Sequence[Tensor]) -> bool:
    return torch.allclose(outputs[0][0], outputs[0][1], rtol=1e-4, atol=1e-5)


def _train(model: nn.Module, architecture: Architecture, call: Call) -> dict[str, Any]:
    """Take some steps of both optimizers; every noise layer must receive a gradient in each."""
    if architecture.package == "skorch":
        return _fit(model)
    weight_adam = torch.optim.Adam(weights(model), lr=1e-3)
    sigma_adam = SigmaAdam(sigmas(model), lr=1e-3)
    reached, finite = set(noise_layers(model)), True
    model.train()
    for _ in range(STEPS):
        loss = architecture.loss(_run(model, call))
        weight_adam.zero_grad()
        sigma_adam.zero_grad()
        loss.backward()
        finite = finite and bool(loss.isfinite())
        reached &= _reached(model)
        weight_adam.step()
        sigma_adam.step()
    model.eval()
    return {"steps": STEPS, "finite": finite, "reached": len(reached), "moved": _moved(model)}


def _fit(model: nn.Module) -> dict[str, Any]:
    """Train by skorch in a scikit-learn pipeline on its breast cancer data."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skorch import NeuralNetClassifier

    reached, losses = set(noise_layers(model)), []

    class NoisyClassifier(NeuralNetClassifier):
        def initialize_optimizer(self, *_: Any, **__: Any) -> Any:
            self.optimizer_ = torch.optim.Adam(weights(self.module_), lr=1e-3)
            self.sigma_optimizer_ = SigmaAdam(sigmas(self.module_), lr=1e-3)
            return self

        def on_grad_computed(self, *args: Any, **options: Any) -> None:
            reached.intersection_update(_reached(self.module_))

    net = NoisyClassifier(model, max_epochs=2, batch_size=128, verbose=0)
    x, y = load_breast_cancer(return_X_y=True)
    make_pipeline(StandardScaler(), net).fit(x.astype("float32"), y)
    losses = [batch["train_loss"] for epoch in net.history for batch in epoch["batches"] if "train_loss" in batch]
    model.eval()
    return {
        "steps": len(losses),
        "finite": bool(torch.tensor(losses).isfinite().all()) and net.module_ is model,
        "reached": len(reached),
        "moved": _moved(model),
    }


def _keep_noise(model: nn.Module, call: Call) -> tuple[list[Tensor], Path]:
    """Return the outputs with noise from a seed, and write the noise to a file."""
    reset_noise(model, 1)
    answer = _noisy_answer(model, call)
    handle, name = tempfile.mkstemp(suffix=".safetensors")
    os.close(handle)
    save_noise(model, name)
    return answer, Path(name)


@torch.no_grad()
def _noisy_answer(model: nn.Module, call: Call) -> list[Tensor]:
    return float_leaves(_run(model, call))


def _reached(model: nn.Module) -> set[str]:
    grads = {path: layer.sigma.grad for path, layer in noise_layers(model).items()}
    return {path for path, grad in grads.items() if grad is not None and bool(grad.isfinite().all() and grad.any())}


def _moved(model: nn.Module) -> int:
    return sum(bool((layer.sigma != INIT).any()) for layer in noise_layers(model).values())


def _answers(model: nn.Module, call: Call) -> list[Tensor]:
    """Return the outputs in eval and training mode from one random state, and the state dict."""
    outputs: list[Tensor] = []
    for training in (False, True):
        torch.manual_seed(1)
        outputs += [leaf.detach().clone() for leaf in float_leaves(_run(model.train(training), call))]
    model.eval()
    return [*outputs, *(value.clone() for value in model.state_dict().values())]


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return True if two values are equal bit for bit."""
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _identity(model: nn.Module) -> list[Any]:
    """Return every module with its class and attributes, by identity, and the keys of the state dict."""
    parts: list[Any] = [list(model.state_dict())]
    for name, module in model.named_modules():
        attributes = [
            (key, [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value))
            for key, value in vars(module).items()
        ]
        parts.append((name, id(module), type(module), attributes))
    return parts


def record() -> list[dict[str, Any]]:
    """Return the facts of all architectures, with the package versions."""
    rows: list[dict[str, Any]] = []
    for architecture in ARCHITECTURES:
        print(architecture.name, file=sys.stderr)
        named = {key: getattr(architecture, key) for key in ("name", "kind", "package", "where", "granularity")}
        rows.append(named | {"version": version(architecture.package).partition("+")[0]} | prove(architecture))
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the text between the two marks in the page."""
    lines = [
        "| architecture | kind | package | `where` | `granularity` | noise layers | sigmas | restored bit for bit |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        package, restored = f"{row['package']} {row['version']}", row["restored untrained"] and row["restored trained"]
        cells = [row["name"], row["kind"], package, f"`{row['where']}`", f"`{row['granularity']}`"]
        cells += [f"{row['layers']}", f"{row['sigmas']:,}", "yes" if restored else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([BEGIN, *lines, END])


def updated(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the table of these facts."""
    head, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name} lacks the marks {BEGIN} and {END}")
    return head + table(rows) + after


def main() -> None:
    """Run all tests, then write the record and the page."""
    warnings.simplefilter("ignore")
    rows = record()
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(updated(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
