"""Check `save_noise` and `load_noise`: noise alone, loaded onto other weights, and untrusted files."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.noise.oracle import snapshot
from torch import Tensor, nn

import noiseprop
from noiseprop import (
    DataError,
    InputError,
    NoisepropError,
    add_noise,
    before,
    load_noise,
    noise_layers,
    remove_noise,
    save_noise,
)
from noiseprop.noise.baselines import rse

X = torch.linspace(0, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.rnn = nn.GRU(4, 5)  # over the pixels, time first
        self.head = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.act(self.conv(x)).flatten(2).permute(2, 0, 1))[0][-1])


def pretrained() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def noisy() -> nn.Module:
    """All that a file can say, in two calls."""
    net = pretrained()
    add_noise(net, ["head", "rnn"], init="normal", mean=True, example=X, key=3)
    add_noise(net, ["conv"], granularity="channel", init=0.25, learn=False, at_inference=False, example=X)
    add_noise(net, before("act"), granularity="layer", init=-0.5, estimator="likelihood-ratio", example=X)
    for noise in noise_layers(net).values():
        if noise.mu is not None:
            noise.mu.data.normal_()
    return net


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_noise(noisy(), tmp_path / "noise.safetensors")
    return tmp_path / "noise.safetensors"


def test_noise_goes_onto_pretrained_weights(file: Path):
    trained, net = noisy(), pretrained()
    keys = list(net.state_dict())
    assert load_noise(net, file, key=3) is net
    assert list(noise_layers(net)) == list(noise_layers(trained))
    for mine, theirs in zip(noise_layers(net).values(), noise_layers(trained).values(), strict=True):
        assert mine.number == theirs.number
        for name in ("granularity", "estimator", "at_inference", "batch_dim", "path"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert isinstance(mine.sigma, nn.Parameter) == isinstance(theirs.sigma, nn.Parameter)
        assert torch.equal(mine.sigma, theirs.sigma)
        assert (mine.mu is None) == (theirs.mu is None)
    assert [name for name in net.state_dict() if ".noise." not in name] == keys


def test_the_same_noise_again(tmp_path: Path):
    trained = noisy()
    save_noise(trained, str(tmp_path / "noise.safetensors"))
    net = load_noise(pretrained(), str(tmp_path / "noise.safetensors"), key=3)
    for _ in range(2):
        assert torch.equal(net(X), trained(X))
    assert torch.equal(net.train()(X), trained.train()(X))
    remove_noise(net)
    assert list(net.state_dict()) == list(pretrained().state_dict())


def test_the_file_holds_the_noise_alone(file: Path):
    names = {"head.1.sigma", "head.1.mu", "rnn.sigma", "rnn.mu", "conv.sigma", "act.sigma"}
    assert set(load_file(file)) == names
    assert file.stat().st_size < 4000


def test_the_file_is_replaced_and_no_other_file_is_left(file: Path):
    save_noise(add_noise(pretrained(), "conv", example=X), file)
    assert os.listdir(file.parent) == [file.name]
    assert list(noise_layers(load_noise(pretrained(), file))) == ["conv.noise"]


def test_a_root_module(tmp_path: Path):
    save_noise(add_noise(nn.Linear(3, 2), "", init=0.5, example=torch.zeros(1, 3)), tmp_path / "f")
    assert load_noise(nn.Linear(3, 2), tmp_path / "f").noise.sigma.tolist() == [0.5, 0.5]


def test_models_of_other_precision(file: Path):
    net = load_noise(pretrained().double(), file)
    assert {noise.sigma.dtype for noise in noise_layers(net).values()} == {torch.float64}


def test_what_cannot_be_saved(tmp_path: Path):
    file = tmp_path / "noise.safetensors"
    with pytest.raises(InputError, match="Net has no noise from add_noise"):
        save_noise(pretrained(), file)
    with pytest.raises(InputError, match="needs the shapes of a first batch"):
        save_noise(add_noise(pretrained(), "all"), file)
    net = add_noise(pretrained(), "conv", example=X)
    net.conv.noise.sigma.data[0] = torch.nan
    with pytest.raises(InputError, match=r"^conv: sigma holds NaN"):
        save_noise(net, file)
    with pytest.raises(InputError, match="is not saved alone; save the model's state_dict"):
        save_noise(rse(pretrained(), example=X), file)
    assert not list(tmp_path.iterdir())
    with pytest.raises(NoisepropError, match="could not be written"):
        save_noise(add_noise(pretrained(), "conv", example=X), tmp_path / "no folder" / "f")


# Models that a file does not fit


def assert_rejected(net: nn.Module, file: Path, kind: type[Exception], message: str) -> None:
    state = snapshot(net)
    with pytest.raises(kind, match=message):
        load_noise(net, file)
    assert snapshot(net) == state


def test_other_models(file: Path):
    assert_rejected(noisy(), file, InputError, r"Net has noise already; call remove_noise\(model\) first")
    assert_rejected(add_noise(pretrained(), "rnn"), file, InputError, "needs the shapes")
    assert_rejected(nn.Linear(5, 5), file, InputError, r"no module of Linear matches where='rnn'")
    net = pretrained()
    net.conv = nn.Conv2d(3, 5, 3)
    assert_rejected(net, file, InputError, r"^conv has 5 outputs, but the file's sigma has shape \(4, 1, 1\)")
    net = pretrained()
    net.rnn = nn.GRU(4, 7)
    assert_rejected(net, file, InputError, r"^rnn has 7 outputs, but the file's sigma has shape \(16, 5\)")
    net = pretrained()
    net.head = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 2)))
    assert_rejected(net, file, InputError, r"the noise of head.1 cannot be added to head.1.0 of this model")
    net = pretrained()
    net.conv.noise = 1
    assert_rejected(net, file, InputError, r"conv already has an attribute `noise`")
    assert_rejected(nn.Sequential(nn.Linear(3, 3, device="meta")), file, InputError, "meta device")


# Damaged files


def rewrite(file: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> None:
    with safe_open(file, "pt") as old:
        header = json.loads(old.metadata()["noise"])
    tensors = load_file(file)
    replaced = change(header, tensors)
    save_file(tensors, file, {"noise": replaced if isinstance(replaced, str) else json.dumps(header)})


def of(header: dict[str, Any], path: str) -> dict[str, Any]:
    return next(layer for layer in header["layers"] if layer["path"] == path)


CHANGES: list[tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = [
    (lambda h, t: h.update(format=2), "has format 2, expected 1; use a newer noiseprop"),
    (lambda h, t: h.update(layers=[]), "was not written by save_noise"),
    (lambda h, t: h.update(layers={}), "was not written by save_noise"),
    (lambda h, t: h["layers"].append(h["layers"][0]), "was not written by save_noise"),
    (lambda h, t: h["layers"].append(None), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(path=3), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(learn=1), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(batch_dim=True), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(batch_dim=99), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(batch_dim=-1), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(granularity="pixel"), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(granularity=["neuron"]), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(estimator=None), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").update(extra=1), "was not written by save_noise"),
    (lambda h, t: of(h, "conv").pop("learn"), "was not written by save_noise"),
    (lambda h, t: "[" * 100_000, "was not written by save_noise"),
    (lambda h, t: "{", "was not written by save_noise"),
    (lambda h, t: "3", "was not written by save_noise"),
    (lambda h, t: " " * (2**24 + 1), r"a header of .* bytes, expected at most 16,777,216"),
    (lambda h, t: t.pop("conv.sigma"), r"conv.sigma is missing"),
    (lambda h, t: t.update(spare=torch.zeros(1)), "spare is not expected"),
    (lambda h, t: of(h, "conv").update(mean=True), r"conv.mu is missing"),
    (lambda h, t: t["rnn.sigma"].fill_(torch.nan), "sigma of rnn .* NaN"),
    (lambda h, t: t["rnn.mu"].fill_(torch.inf), "mu of rnn .* NaN"),
    (lambda h, t: t.update({"rnn.sigma": t["rnn.sigma"].long()}), "sigma of rnn has type torch.int64"),
    (lambda h, t: t.update({"rnn.mu": torch.zeros(7)}), "shapes of rnn do not agree"),
    (lambda h, t: t.update({"act.sigma": torch.zeros(7)}), "shapes of act do not agree"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_damaged_files(file: Path, change: Any, message: str):
    rewrite(file, change)
    assert_rejected(pretrained(), file, DataError, message)


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 4, 1), (4, 1), (4, 1, 1, 1), (4, 1, 0)])
def test_a_sigma_per_channel_has_ones_where_it_is_shared(file: Path, shape: tuple[int, ...]):
    rewrite(file, lambda h, t: t.update({"conv.sigma": torch.ones(shape)}))
    assert_rejected(pretrained(), file, InputError, r"^conv has 4 outputs, but the file's sigma has shape")


def test_files_of_other_kinds(tmp_path: Path, file: Path):
    assert_rejected(pretrained(), tmp_path / "absent", DataError, "absent is missing; write it with save_noise")
    assert_rejected(pretrained(), tmp_path, DataError, "is missing")
    save_file({"conv.sigma": torch.zeros(4, 1, 1)}, tmp_path / "plain")
    assert_rejected(pretrained(), tmp_path / "plain", DataError, "was not written by save_noise")
    (tmp_path / "empty").touch()
    assert_rejected(pretrained(), tmp_path / "empty", DataError, "is damaged")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(5 * 2**30)
    assert_rejected(pretrained(), tmp_path / "huge", DataError, "expected at most 4294967296 for noise")
    (tmp_path / "huge").unlink()
    os.mkfifo(tmp_path / "pipe")
    assert_rejected(pretrained(), tmp_path / "pipe", DataError, "is missing")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_rejected_or_harmless(file: Path, data: st.DataObject):
    """Check that changed bytes either raise an error and leave the model unchanged, or give finite noise."""
    good = file.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    other = file.with_name("other")
    other.write_bytes(bytes(bad[: data.draw(st.integers(0, len(bad)))] if data.draw(st.booleans()) else bad))
    net = pretrained()
    state = snapshot(net)
    try:
        load_noise(net, other)
    except NoisepropError:
        assert snapshot(net) == state
    else:
        assert all(noise.sigma.isfinite().all() for noise in noise_layers(net).values())
        assert noiseprop.is_noisy(copy.deepcopy(net))
