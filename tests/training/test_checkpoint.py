import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from noiseprop.errors import RunError
from noiseprop.files.checksum import add_checksum, hash_tensors
from noiseprop.models import cnn, mlp
from noiseprop.noise.sigma_adam import SigmaAdam
from noiseprop.training import Recipe, train
from noiseprop.training.checkpoint import load_model, load_state, save_model, save_state


def stepped(steps, net=None, optimizer=None, seed=0):
    """A CNN after some Adam steps on made-up digits, in the layout that training uses."""
    torch.manual_seed(seed)
    net = net or cnn().to(memory_format=torch.channels_last)
    optimizer = optimizer or torch.optim.Adam(net.parameters(), weight_decay=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.rand(8, 1, 28, 28, generator=generator), torch.randint(10, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, optimizer


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_comes_back_to_the_bit(tmp_path):
    net, _ = stepped(2)
    save_model(net, tmp_path / "model.safetensors", epoch=7)
    other = cnn()
    assert not equal(other.state_dict(), net.state_dict())
    assert load_model(other, tmp_path / "model.safetensors") == 7
    assert equal(other.state_dict(), net.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_model(stepped(2)[0], tmp_path / name, epoch=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_training_goes_on_with_the_same_bits(tmp_path):
    net, optimizer = stepped(3)
    save_state(tmp_path / "state", net, {"weights": optimizer}, epoch=3)
    stepped(2, net, optimizer)

    resumed = cnn().to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(resumed.parameters(), weight_decay=1e-4, fused=True)
    assert load_state(tmp_path / "state", resumed, {"weights": adam}) == 3
    moments = adam.state[resumed.conv2.weight]["exp_avg"]
    assert moments.stride() == resumed.conv2.weight.stride()
    assert float(adam.state[resumed.conv2.weight]["step"]) == 3
    stepped(2, resumed, adam)
    assert equal(resumed.state_dict(), net.state_dict())
    saved, again = optimizer.state_dict()["state"], adam.state_dict()["state"]
    assert all(equal(saved[number], again[number]) for number in saved)


def test_numbers_that_are_no_tensors_are_kept_too(tmp_path):
    net = mlp((4, 2))
    optimizer = SigmaAdam(net.parameters(), lr=1.0)
    optimizer.state[net.fc1.weight] = {"step": 5, "h": torch.ones(2, 4), "v": torch.ones(2, 4)}
    save_state(tmp_path / "state", net, {"weights": optimizer}, epoch=1)
    again = SigmaAdam(net.parameters(), lr=0.5)
    load_state(tmp_path / "state", net, {"weights": again})
    assert again.state[net.fc1.weight]["step"] == 5
    assert again.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("capturable", [False, True])
def test_step_counts_on_the_device_are_restored(tmp_path, capturable):
    net, other = mlp((4, 2)), mlp((4, 2))
    optimizers = [SigmaAdam(model.parameters(), capturable=capturable) for model in (net, other)]
    for _ in range(3):
        net(torch.ones(2, 1, 2, 2)).sum().backward()
        optimizers[0].step()
    save_state(tmp_path / "state", net, {"sigma": optimizers[0]}, epoch=1)
    load_state(tmp_path / "state", other, {"sigma": optimizers[1]})
    assert isinstance(optimizers[1].state[other.fc1.weight]["step"], torch.Tensor) == capturable
    for model, optimizer in zip((net, other), optimizers, strict=True):
        model.zero_grad()
        model(torch.ones(2, 1, 2, 2)).sum().backward()
        optimizer.step()
    assert float(optimizers[1].state[other.fc1.weight]["step"]) == 4
    assert equal(net.state_dict(), other.state_dict())


def header_of(tensors, scalars=()):
    """The header that fits tensors."""
    digest = hash_tensors({name: tensors[name] for name in sorted(tensors)})
    return {"noiseprop": json.dumps(add_checksum({"epoch": 1, "tensors": digest, "scalars": dict(scalars)}))}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (mlp((784, 100, 10)), "fc3.bias is unknown"),
        (mlp((784, 100, 50, 20, 10)), "fc4.bias is missing"),
        (mlp((784, 100, 60, 10)), r"fc2.weight has shape \(50, 100\), expected \(60, 100\)"),
        (mlp().double(), r"fc1.weight is torch.float32, expected torch.float64"),
    ],
)
def test_another_network_is_refused_and_unchanged(tmp_path, other, sentence):
    net = mlp()
    save_model(net, tmp_path / "model", epoch=1)
    save_state(tmp_path / "state", net, {}, epoch=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(RunError, match=sentence):
        load_model(other, tmp_path / "model")
    with pytest.raises(RunError, match=sentence):
        load_state(tmp_path / "state", other, {})
    assert equal(other.state_dict(), before)


def test_damaged_files_are_one_sentence(tmp_path):
    path = tmp_path / "model"
    net = mlp((4, 3, 2))
    with pytest.raises(RunError, match="is missing"):
        load_model(net, path)
    save_model(net, path, epoch=1)
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:20], b"", b"\xff" * 8 + whole[8:], b"\x80\x04\x95pickle"):
        path.write_bytes(content)
        with pytest.raises(RunError, match=f"{path} is damaged"):
            load_model(net, path)


@pytest.mark.parametrize("header", [None, "nonsense", "[]", "{}", '{"epoch": -1}', '{"epoch": 1, "scalars": 3}'])
def test_a_foreign_header_is_one_sentence(tmp_path, header):
    net = mlp((4, 3, 2))
    save_file(net.state_dict(), tmp_path / "x", None if header is None else {"noiseprop": header})
    with pytest.raises(RunError, match="was not written by noiseprop" if header is None else "x is damaged"):
        load_model(net, tmp_path / "x")


@pytest.mark.parametrize("key", ["weights.9.exp_avg", "weights.x.exp_avg", "weights.-1.exp_avg"])
def test_optimizer_state_of_no_parameter_is_refused(tmp_path, key):
    net = mlp((4, 2))
    tensors = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    save_file({**tensors, key: torch.zeros(2)}, tmp_path / "x", header_of({**tensors, key: torch.zeros(2)}))
    with pytest.raises(RunError, match="belongs to none of 2 parameters"):
        load_state(tmp_path / "x", net, {"weights": torch.optim.Adam(net.parameters())})


def test_optimizer_state_of_another_shape_is_refused(tmp_path):
    net = mlp((4, 2))
    tensors = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    tensors["weights.0.exp_avg"] = torch.zeros(9, 9)
    save_file(tensors, tmp_path / "x", header_of(tensors))
    with pytest.raises(RunError, match=r"weights.0.exp_avg has shape \(9, 9\), expected \(2, 4\)"):
        load_state(tmp_path / "x", net, {"weights": torch.optim.Adam(net.parameters())})


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    net = mlp((4, 2))
    save_model(net, tmp_path / "model", epoch=1)
    before = (tmp_path / "model").read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("noiseprop.files.tensors.save_file", full)
    with pytest.raises(RunError, match="No space left"):
        save_model(net, tmp_path / "model", epoch=2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model": before}


def test_the_state_holds_model_and_moments_by_name(tmp_path):
    net, optimizer = stepped(1, mlp())
    save_state(tmp_path / "state", net, {"weights": optimizer}, epoch=1)
    tensors = load_file(tmp_path / "state")
    assert torch.equal(tensors["model.fc1.weight"], net.fc1.weight)
    assert torch.equal(tensors["weights.0.exp_avg"], optimizer.state[net.fc1.weight]["exp_avg"])
    assert len(tensors) == 6 + 6 * 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"weights.0.exp_avg": None},
            "weights has exp_avg_sq, step for parameter 0, expected exp_avg, exp_avg_sq, step",
        ),
        ({"weights.0.max": torch.zeros(10, 784)}, "weights has exp_avg, exp_avg_sq, max, step for parameter 0"),
        ({"weights.0.exp_avg": torch.zeros(())}, r"weights.0.exp_avg has shape \(\), expected \(10, 784\)"),
        ({"weights.0.step": torch.zeros(10, 784)}, r"weights.0.step has shape \(10, 784\), expected \(\)"),
        ({"weights.0.step": torch.tensor(-1e30)}, r"weights.0.step is -1e\+30"),
        ({"weights.0.exp_avg": torch.full((10, 784), torch.nan)}, "weights.0.exp_avg holds NaN or infinity"),
        ({"model.fc1.weight": torch.full((10, 784), torch.inf)}, "model.fc1.weight holds NaN or infinity"),
    ],
)
def test_a_state_that_a_step_would_fail_on_is_refused(tmp_path, changes, says):
    net, optimizer = stepped(1, mlp((784, 10)))
    save_state(tmp_path / "state", net, {"weights": optimizer}, epoch=1)
    tensors = {name: x for name, x in (load_file(tmp_path / "state") | changes).items() if x is not None}
    save_file(tensors, tmp_path / "x", header_of(tensors))
    with pytest.raises(RunError, match=says):
        load_state(tmp_path / "x", net, {"weights": torch.optim.Adam(net.parameters())})


@pytest.mark.parametrize("value", [-1, 1.5, None, "5", 2**53])
def test_a_number_of_steps_that_is_none_is_refused(tmp_path, value):
    net = mlp((4, 2))
    tensors = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    save_file(tensors, tmp_path / "x", header_of(tensors, {"sigma.0.step": value}))
    with pytest.raises(RunError, match=r"Expected `int`.* at `\$\.scalars\[\.\.\.\]`|sigma has step"):
        load_state(tmp_path / "x", net, {"sigma": SigmaAdam(net.parameters(), lr=1.0)})


def test_no_pickle_is_read_or_written(tmp_path, monkeypatch, thirds):
    def refused(*args, **kwargs):
        raise AssertionError("a pickle")

    for module, names in (
        (pickle, ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")),
        (torch, ("save", "load")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refused)
    for epochs in (1, 2):
        train(mlp((36, 8, 3)), thirds, Recipe(epochs=epochs), tmp_path / "run", resume=epochs == 2)
    assert load_model(mlp((36, 8, 3)), tmp_path / "run" / "model.safetensors") == 2
