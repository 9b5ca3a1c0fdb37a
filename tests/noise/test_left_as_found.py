"""Check that models, images and files are left as they were found, on networks unlike the examples."""

import copy
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.attacks.foreign_networks import CLASSES, NETWORKS, Normalised, images
from tests.noise.oracle import snapshot
from torch import Tensor, nn

import noiseprop
from noiseprop import add_noise, inspect_noise, load_noise, noise_layers, remove_noise, save_noise
from noiseprop.noise.diagnostics.gradient_check import check_theorems

X, Y = images()
BATCHES = [(X[:6], Y[:6]), (X[6:], Y[6:])]


def flags(model: nn.Module) -> list[object]:
    """Return the modes, flags, ids of parameters, and the bytes of all values."""
    modes = [(name, module.training, getattr(module, "merged", None)) for name, module in model.named_modules()]
    parameters = [(name, id(p), p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return [modes, parameters, {name: value.numpy().tobytes() for name, value in model.state_dict().items()}]


def noisy(name: str) -> nn.Module:
    return add_noise(NETWORKS[name](), "linear", init=0.3, example=X[:2])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_inspect_noise_leaves_the_model_as_it_was(name: str, training: bool) -> None:
    model = noisy(name).train(training)
    before = flags(model)
    measured = inspect_noise(model, BATCHES)
    assert flags(model) == before
    evaluated = copy.deepcopy(model).eval()  # by the network's own eval(), which merges
    for layer, expected in zip(measured, inspect_noise(evaluated, BATCHES), strict=True):
        torch.testing.assert_close(layer.spread, expected.spread, rtol=0, atol=0)
        torch.testing.assert_close(layer.gradient, expected.gradient, rtol=0, atol=0)
        torch.testing.assert_close(layer.sigma, torch.full_like(layer.sigma, 0.3))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_backward_pass_after_inspect_noise_reaches_the_same_parameters(name: str) -> None:
    model = noisy(name).train()
    twin = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    inspect_noise(model, BATCHES)
    for net in (model, twin):
        torch.manual_seed(0)  # of the dropout
        nn.functional.cross_entropy(net(X), Y).backward()
    for path, expected in twin.named_parameters():
        grad = parameters[path].grad
        assert (grad is None) == (expected.grad is None)
        assert grad is None or torch.equal(grad, expected.grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_check_leaves_the_model_as_it_was(name: str) -> None:
    model = noisy(name).train()
    before = flags(model)
    checks = check_theorems(model, X[:2], Y[:2], draws=3)
    assert flags(model) == before
    assert all(check.theorem_1 for check in checks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_probe_leaves_the_model_as_it_was(name: str, training: bool) -> None:
    model = NETWORKS[name]().train(training)
    before = flags(model)
    add_noise(model, "linear", example=X[:2])
    assert noise_layers(model)
    remove_noise(model)
    assert flags(model) == before


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_that_normalises_in_place_keeps_the_images_of_the_caller(name: str) -> None:
    model = noisy(name).eval()
    in_place, plain = (Normalised(model, in_place=flag) for flag in (True, False))
    given = [(x.clone(), y.clone()) for x, y in BATCHES]
    noiseprop.reset_noise(model, 1)
    measured = inspect_noise(in_place, given)
    for (x, y), (original, labels) in zip(given, BATCHES, strict=True):
        assert torch.equal(x, original)
        assert torch.equal(y, labels)
    noiseprop.reset_noise(model, 1)
    for layer, expected in zip(measured, inspect_noise(plain, BATCHES), strict=True):
        torch.testing.assert_close(layer.spread, expected.spread, rtol=0, atol=0)
        torch.testing.assert_close(layer.gradient, expected.gradient, rtol=0, atol=0)


def test_the_gradient_check_keeps_the_images_too() -> None:
    model = Normalised(noisy("lora").eval(), in_place=True)
    x = X[:2].clone()
    assert all(check.theorem_1 for check in check_theorems(model, x, Y[:2], draws=2))
    assert torch.equal(x, X[:2])


@pytest.mark.parametrize("name", NETWORKS)
def test_save_noise_leaves_the_model_as_it_was(name: str, tmp_path: Path) -> None:
    model = noisy(name).train()
    before = flags(model)
    save_noise(model, tmp_path / "noise")
    assert flags(model) == before
    loaded = load_noise(NETWORKS[name]().train(), tmp_path / "noise")
    torch.manual_seed(0)
    expected = model(X)
    torch.manual_seed(0)
    assert torch.equal(loaded(X), expected)


# Permissions


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_new_file_has_the_permissions_of_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save_noise(noisy("lora"), tmp_path / "noise")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "noise").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o664, 0o600, 0o640])
def test_an_existing_file_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "noise"
    file.write_bytes(b"old")
    file.chmod(mode)
    save_noise(noisy("frozen norms"), file)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert noise_layers(load_noise(NETWORKS["frozen norms"](), file))


# Wrapped models

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_noise_of_a_wrapped_model_is_saved_as_that_of_the_plain_one(
    name: str, wrapper: str, tmp_path: Path
) -> None:
    model = noisy(name).eval()
    save_noise(model, tmp_path / "plain")
    save_noise(WRAPPERS[wrapper](model), tmp_path / "wrapped")
    assert (tmp_path / "wrapped").read_bytes() == (tmp_path / "plain").read_bytes()
    loaded = load_noise(NETWORKS[name]().eval(), tmp_path / "wrapped")
    noiseprop.reset_noise(model, 3)
    noiseprop.reset_noise(loaded, 3)
    assert torch.equal(loaded(X), model(X))


def test_the_noise_of_a_model_with_a_compiled_part_is_saved_too(tmp_path: Path) -> None:
    model = add_noise(NETWORKS["frozen norms"]().eval(), "head", init=0.4, example=X[:2])
    model.head = torch.compile(model.head, backend="eager")
    save_noise(model, tmp_path / "noise")
    loaded = load_noise(NETWORKS["frozen norms"]().eval(), tmp_path / "noise")
    assert list(noise_layers(loaded)) == ["head.noise"]
    assert loaded.head.noise.sigma.eq(0.4).all()


def test_tied_sigmas_are_saved(tmp_path: Path) -> None:
    sigma = nn.Parameter(torch.linspace(0.1, 0.4, CLASSES))
    other = add_noise(
        nn.Sequential(nn.Linear(2, CLASSES), nn.Linear(CLASSES, CLASSES)), "all", example=torch.ones(1, 2)
    )
    other[0].noise.sigma = other[1].noise.sigma = sigma
    save_noise(other, tmp_path / "noise")
    loaded = load_noise(nn.Sequential(nn.Linear(2, CLASSES), nn.Linear(CLASSES, CLASSES)), tmp_path / "noise")
    assert all(torch.equal(layer.sigma, sigma) for layer in noise_layers(loaded).values())


# Messages


@pytest.mark.parametrize(
    ("where", "suggestion"), [("linaer", "linear"), ("cnov", "conv"), ("All", "all"), ("recurent", "recurrent")]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_misspelt_group_is_suggested(name: str, where: str, suggestion: str) -> None:
    model = NETWORKS[name]()
    state = snapshot(model)
    with pytest.raises(noiseprop.InputError, match=rf"where='{where}'; there are .*\(did you mean {suggestion}\?\)$"):
        add_noise(model, where, example=X[:2])
    assert snapshot(model) == state


def test_a_misspelt_path_is_suggested() -> None:
    with pytest.raises(noiseprop.InputError, match=r"\(did you mean norm\?\)$"):
        add_noise(NETWORKS["frozen norms"](), "nrom", example=X[:2])
    with pytest.raises(noiseprop.InputError, match=r"paths and types, so pass where='conv' for the group$"):
        add_noise(NETWORKS["lora"](), ["conv"], example=X[:2])
    with pytest.raises(noiseprop.InputError, match=r"matches where='conv'; there are [^?]*LoraLinear\)$"):
        add_noise(NETWORKS["lora"](), "conv", example=X[:2])
    with pytest.raises(noiseprop.InputError, match=r"; there are [^?]*$"):
        add_noise(NETWORKS["frozen norms"](), "zzz", example=X[:2])


@pytest.mark.parametrize("name", NETWORKS)
def test_sigma_adam_without_noise_says_what_to_call(name: str) -> None:
    model = NETWORKS[name]()
    with pytest.raises(noiseprop.InputError, match=r"SigmaAdam got no sigma; call add_noise\(model, learn=True\)"):
        noiseprop.SigmaAdam(noiseprop.sigmas(model))
    with pytest.raises(noiseprop.InputError, match="SigmaAdam got no sigma"):
        noiseprop.SigmaAdam([{"params": noiseprop.sigmas(model), "lr": 0.1}])
    model = add_noise(model, "linear", init=0.3, example=X[:2])
    assert len(noiseprop.SigmaAdam(noiseprop.sigmas(model)).param_groups[0]["params"]) == len(noise_layers(model))
    noisy_output: Tensor = model(X)
    assert noisy_output.shape == (len(X), CLASSES)
