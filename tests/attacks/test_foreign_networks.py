"""Attacks on networks unlike the examples: in-place normalisation, half types, custom train(), NumPy and lists."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from tests.attacks.foreign_networks import NETWORKS, Normalised, images
from torch import nn

from noiseprop.attacks import apgd, fgsm, lbfgs, lbfgs_szegedy, pgd, spsa, square, transfer
from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.saliency import smoothgrad

EPS = 8 / 255
ATTACKS = {
    "fgsm": partial(fgsm, eps=EPS),
    "pgd": partial(pgd, eps=EPS, step=EPS / 2, steps=3, random_start=True, restarts=2),
    "apgd": partial(apgd, eps=EPS, steps=5, restarts=2),
    "lbfgs": partial(lbfgs, step=0.5, steps=3),
    "lbfgs_szegedy": partial(lbfgs_szegedy, steps=5, searches=6),
    "square": partial(square, eps=EPS, queries=6),
    "spsa": partial(spsa, eps=EPS, step=EPS / 2, steps=2, directions=2),
    "smoothgrad": lambda model, x, y: smoothgrad(model, x, y, samples=2),
}
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(params=NETWORKS)
def make(request):
    return NETWORKS[request.param]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_network_that_changes_its_input_in_place_is_attacked_like_its_twin(make, attack):
    x, found = images()[0], []
    y = Normalised(make(), in_place=False).eval()(x).argmax(1)
    for in_place in (False, True):
        model = Normalised(make(), in_place=in_place)
        given, labels = x.clone(), y.clone()
        torch.manual_seed(0)
        found.append(attack(model, given, labels))
        assert torch.equal(given, x)
        assert torch.equal(labels, y)
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)


def test_transfer_scores_the_images_that_it_returns(make):
    x, y = images()
    twins = [Normalised(make(), in_place=in_place) for in_place in (True, False)]
    found = transfer(twins[0], x, y, surrogate=twins[0], attack=partial(fgsm, eps=EPS))
    expected = transfer(twins[1], x, y, surrogate=twins[1], attack=partial(fgsm, eps=EPS))
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.logits, expected.logits)
    assert 0 < (found.x_adv - x).abs().max() <= EPS + 1e-6
    assert torch.equal(found.logits[0], twins[1].eval()(found.x_adv))


def test_an_attack_by_others_cannot_change_the_images_of_the_caller(make):
    x, y = images()
    given, labels = x.clone(), y.clone()

    def attack(model, x, y):
        y.zero_()
        return x.add_(0.1).clamp_(0, 1)

    found = transfer(make(), given, labels, surrogate=make(), attack=attack)
    assert torch.equal(given, x)
    assert torch.equal(labels, y)
    torch.testing.assert_close(found.x_adv, (x + 0.1).clamp(max=1))


def test_draws_of_noise_on_a_network_that_changes_its_input_in_place():
    x, y = images()
    found = []
    for in_place in (False, True):
        model = add_noise(
            Normalised(NETWORKS["lora"](), in_place=in_place), "linear", init=0.3, example=x.clone(), key=1
        )
        found.append(pgd(model, x, y, eps=EPS, step=EPS / 2, steps=3, draws=4))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "square", "spsa"])
@pytest.mark.parametrize("eps", [EPS, 0.1, 1 / 3, 0.001])
def test_half_types_never_leave_the_ball(make, name, dtype, eps):
    attack = {
        "fgsm": partial(fgsm, eps=eps),
        "pgd": partial(pgd, eps=eps, step=eps / 2, steps=4, random_start=True, restarts=2),
        "apgd": partial(apgd, eps=eps, steps=5, restarts=2),
        "square": partial(square, eps=eps, queries=6),
        "spsa": partial(spsa, eps=eps, step=eps, steps=2, directions=2),
    }[name]
    x, y = images(dtype=dtype)
    x_adv = attack(make().to(dtype), x, y)
    distance = (x_adv.double() - x.double()).abs()
    assert x_adv.dtype == dtype
    assert distance.max() <= eps  # exactly: differences of half types are exact in float64
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert distance.max() > 0.75 * eps


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_half_types_reach_the_furthest_number_in_the_ball(name, dtype):
    """On a linear network the optimum is known: a pixel's furthest number of the dtype within eps, found by trial."""
    torch.manual_seed(0)
    x = torch.rand(8, 20).to(dtype)
    model = nn.Linear(20, 2).to(dtype)
    y = torch.zeros(8, dtype=torch.int64)
    up = (model.weight[1] - model.weight[0]).double() > 0
    numbers = torch.arange(2**14, dtype=torch.int16).view(dtype).double()  # all from 0 to 2, or more
    numbers = numbers[(numbers >= 0) & (numbers <= 1)]
    within = (numbers - x.double()[..., None]).abs() <= EPS
    highest = numbers.expand_as(within).masked_fill(~within, -1).amax(-1)
    lowest = numbers.expand_as(within).masked_fill(~within, 2).amin(-1)
    options = {} if name == "fgsm" else {"step": EPS, "steps": 3}
    x_adv = {"fgsm": fgsm, "pgd": pgd}[name](model, x, y, eps=EPS, **options)
    assert torch.equal(x_adv.double(), torch.where(up, highest, lowest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_pixels_off_by_rounding_are_clamped(make, dtype):
    x, y = images(dtype=dtype)
    model = make().to(dtype)
    off = torch.where(x == 1, 1 + torch.finfo(dtype).eps, x)
    off = torch.where(off == 0, torch.full_like(x, -torch.finfo(dtype).eps), off)
    assert off.max() > 1
    assert off.min() < 0
    assert torch.equal(fgsm(model, off, y, eps=EPS), fgsm(model, x, y, eps=EPS))


def test_pixels_further_off_are_shown_with_enough_digits(make):
    x, y = images()
    x[0, 0, 0, 0] = 1.00001
    with pytest.raises(InputError, match=r"lie in \[0, 1\.00001\], expected \[0, 1\].*clamp") as caught:
        pgd(make(), x, y, eps=EPS, step=EPS, steps=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_lists_and_arrays_are_taken_as_the_tensors_that_they_are(make, attack):
    x, y = images()
    found = []
    for given, labels in (
        (x, y),
        (x.numpy(), y.tolist()),
        (x.double().numpy(), y.numpy().astype(np.int32)),
        (x, tuple(y)),
    ):
        torch.manual_seed(0)
        found.append(attack(make(), given, labels))
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (images()[0].numpy(), ["a"] * 12, "labels are a list, expected a tensor or an array of numbers"),
        (images()[0].numpy(), [[0], [1, 2]], "labels are a list"),
        (images()[0].numpy(), [0.5] * 12, "labels have dtype torch.float64"),
        (images()[0].numpy(), None, "labels are a NoneType"),
        ((images()[0] * 255).to(torch.uint8).numpy(), [0] * 12, "images have dtype torch.uint8"),
        ("cat.png", [0], "images are a str"),
        (None, [0], "images are a NoneType"),
    ],
)
def test_other_things_than_numbers_are_one_sentence(make, x, y, says):
    with pytest.raises(InputError, match=says) as caught:
        fgsm(make(), x, y, eps=EPS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_function_instead_of_a_module_is_one_sentence(make, attack):
    x, y = images()
    model = make()
    with pytest.raises(InputError, match=r"the model is a function, expected a torch\.nn\.Module; wrap"):
        attack(lambda x: model(x), x, y)
    with pytest.raises(InputError, match=r"the model is a function, expected a torch\.nn\.Module; wrap"):
        transfer(lambda x: model(x), x, y, surrogate=model, attack=partial(fgsm, eps=EPS))


def test_an_output_with_logits_inside_is_one_sentence():
    x, y = images()
    with pytest.raises(InputError, match=r"the model returned ImageClassifierOutput for 12 images.*wrap the model"):
        fgsm(NETWORKS["hugging face"]().model, x, y, eps=EPS)


def test_an_attack_that_returns_no_tensor_is_one_sentence(make):
    x, y = images()
    says = r"the attack returned ndarray, expected images like its input, torch\.float32"
    with pytest.raises(InputError, match=says):
        transfer(make(), x, y, surrogate=make(), attack=lambda model, x, y: x.numpy())


def test_numbers_of_numpy_are_numbers(make):
    x, y = images()
    model = make()
    found = pgd(model, x, y, eps=np.float64(EPS), step=np.float32(0.01), steps=np.int64(2), draws=np.int32(1))
    assert torch.equal(found, pgd(model, x, y, eps=EPS, step=float(np.float32(0.01)), steps=2))


def snapshot(model):
    """Everything of a model that an attack must leave as found."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: (id(tensor), tensor.detach().clone()) for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "merged": {name: module.merged for name, module in model.named_modules() if hasattr(module, "merged")},
    }


def assert_left_as_found(model, before):
    after = snapshot(model)
    for name in ("requires_grad", "training", "merged"):
        assert after[name] == before[name], name
    assert after["values"].keys() == before["values"].keys()
    for name, (identity, value) in before["values"].items():
        assert after["values"][name][0] == identity, name
        assert torch.equal(after["values"][name][1], value), name


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_weights_flags_and_modes_are_left_as_found(make, attack, mode):
    x, y = images()
    model = make().train(mode != "eval")
    if mode == "mixed":
        list(model.children())[-1].eval()
    twin, before = copy.deepcopy(model), snapshot(model)
    attack(model, x, y)
    assert_left_as_found(model, before)
    gradients = []
    for net in (model, twin):
        torch.manual_seed(0)
        nn.functional.cross_entropy(net(x.clone()), y).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_the_network_under_attack_is_the_one_in_eval_mode(make):
    """With a train() that has effects too: gradients are those of the network that is deployed."""
    x, y = images()
    model, deployed = make().train(), make().eval()
    assert torch.equal(fgsm(model, x, y, eps=EPS), fgsm(deployed, x, y, eps=EPS))
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(deployed(leaf), y, reduction="sum").backward()
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS), (x + EPS * leaf.grad.sign()).clamp(0, 1))
