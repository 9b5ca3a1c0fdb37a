"""Files that are cut, have bits flipped, lose a block or are gone: nothing that is not as written is ever used."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from tests.faults.damage import damaged, flipped
from tests.faults.table import AGAIN, HARMLESS, TOLD

from noiseprop.cli import main
from noiseprop.data import load
from noiseprop.data.image_cache import read_cached_images
from noiseprop.data.tiny_imagenet import CacheIndex
from noiseprop.errors import NoisepropError
from noiseprop.evaluation import serialization as storage
from noiseprop.evaluation.checkpoint import EvaluationIdentity, PartialEvaluation
from noiseprop.files.records import parse_record
from noiseprop.paper.results import read_table
from noiseprop.runs.trained_model import load_run
from noiseprop.training.checkpoint import load_model, load_state, read_epoch
from noiseprop.training.loop import make_optimizers
from noiseprop.training.recipes import Recipe
from noiseprop.training.run_folder import read_config, truncate_metrics

pytestmark = pytest.mark.slow
EPOCHS = 3


def told(call, *arguments):
    """What a call returns, or the one sentence of its error."""
    try:
        return call(*arguments), None
    except NoisepropError as error:
        sentence = str(error)
    assert "\n" not in sentence
    return None, sentence


def try_reader(path, read, same, *, flips, faults, name):
    """Read a file as it is, and damaged in each way and removed: what is read is as it was written, or nothing is."""
    content, rng = path.read_bytes(), random.Random(name)
    expected = read()
    assert same(read(), expected)
    counts = {TOLD: 0, HARMLESS: 0}
    for other in (*damaged(content, flips, rng), None):
        path.unlink()
        if other is not None:
            path.write_bytes(other)
        found, sentence = told(read)
        assert sentence is not None or same(found, expected)
        counts[HARMLESS if sentence is None else TOLD] += 1
    path.write_bytes(content)
    assert same(read(), expected)
    assert counts[TOLD] > 20
    for outcome, times in counts.items():
        if times:
            faults.add(name, outcome, times)


def equal(a, b):
    return a == b


def equal_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_config(run, faults):
    def read():
        return read_config(run)

    try_reader(run / "config.json", read, equal, flips=10**6, faults=faults, name="damage-config")


def test_metrics(run, faults):
    def read():
        return truncate_metrics(run, EPOCHS)

    try_reader(run / "metrics.jsonl", read, equal, flips=10**6, faults=faults, name="damage-metrics")


def test_state(run, faults):
    net, _ = load_run(run)
    optimizers = make_optimizers(net, Recipe())

    def read():
        epoch = load_state(run / "state.safetensors", net, optimizers)
        moments = {
            f"{name} {number} {field}": torch.as_tensor(value).clone()
            for name, optimizer in optimizers.items()
            for number, state in optimizer.state_dict()["state"].items()
            for field, value in state.items()
        }
        weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        return moments | weights | {"epoch": torch.tensor(epoch)}

    path = run / "state.safetensors"
    try_reader(path, read, equal_tensors, flips=800, faults=faults, name="damage-state")


def test_model(run, faults):
    net, _ = load_run(run)
    path = run / "model.safetensors"

    def read():
        epoch = load_model(net, path)
        assert read_epoch(path) == epoch
        return {name: tensor.clone() for name, tensor in net.state_dict().items()} | {"epoch": torch.tensor(epoch)}

    try_reader(path, read, equal_tensors, flips=800, faults=faults, name="damage-model")


def test_headers_of_weights(run, faults):
    """Every bit of what stands before the tensors."""
    net, _ = load_run(run)
    path = run / "model.safetensors"
    content = path.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for bit in range(8 * head):
        path.write_bytes(flipped(content, bit // 8, 1 << bit % 8))
        epoch, sentence = told(load_model, net, path)
        assert sentence is not None or epoch == EPOCHS
        assert equal_tensors(dict(net.state_dict()), expected)
        faults.add("damage-model", HARMLESS if sentence is None else TOLD)


def test_evaluation(run, faults):
    def read():
        return storage.format_evaluation(storage.read_evaluation(run / "evaluation.json"))

    path = run / "evaluation.json"
    try_reader(path, read, equal, flips=4000, faults=faults, name="damage-evaluation")


def test_results(reproduced, tmp_path, faults):
    (original,) = (reproduced / "out").glob("*.json")
    path = Path(shutil.copy(original, tmp_path))

    def read():
        return read_table(path)

    try_reader(path, read, equal, flips=4000, faults=faults, name="damage-results")


def test_the_cache_of_decoded_images(pictures, tmp_path, monkeypatch, faults):
    """It is made again, byte for byte."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = load("tiny-imagenet", pictures).images.clone()
    index, images = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".npy", ".json"))
    before, rng = {path: path.read_bytes() for path in (index, images)}, random.Random(3)
    for path, flips in ((index, 300), (images, 60)):
        for other in (*damaged(before[path], flips, rng), None):
            path.unlink()
            if other is not None:
                path.write_bytes(other)
            assert read_cached_images(index.parent, index.stem, CacheIndex) is None
        assert torch.equal(load("tiny-imagenet", pictures).images, whole)
        assert path.read_bytes() == before[path]
        faults.add("damage-cache", AGAIN, 40 + flips)


def test_finished_steps_of_an_evaluation(undisturbed, evaluate, tmp_path, few, faults):
    """A step that was damaged is measured again."""
    run = undisturbed.measured(EPOCHS, tmp_path / "run")
    path = run / "evaluation.partial.jsonl"
    content, rng = path.read_bytes(), random.Random(4)
    identity = parse_record(content.decode().splitlines()[0], EvaluationIdentity)
    found = dict(PartialEvaluation(path, identity, writes=False)._done)
    assert len(found) == len(content.splitlines()) - 1 > 0
    for other in damaged(content, 4000, rng):
        path.write_bytes(other)
        done = PartialEvaluation(path, identity, writes=False)._done
        assert all(found.get(step) == kept for step, kept in done.items())
        faults.add("damage-partial", HARMLESS if len(done) == len(found) else AGAIN)
    for other in (content[: len(content) // 2], content.replace(b'"correct": "', b'"correct": "A', 1), None):
        path.unlink(missing_ok=True)
        if other is not None:
            path.write_bytes(other)
        assert main(list(map(str, evaluate(run)))) == 0
        whole = (undisturbed.evaluated(EPOCHS) / "evaluation.json").read_bytes()
        assert (run / "evaluation.json").read_bytes() == whole
        faults.add("damage-partial", AGAIN)
