"""Attacks leave a model, its gradients and torch's random state as they found them."""

from functools import partial

import pytest
import torch
from torch import nn

from noiseprop.attacks import apgd, fgsm, lbfgs, lbfgs_szegedy, pgd, transfer
from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import noise_kept, reset_noise

ATTACKS = {
    "fgsm": partial(fgsm, eps=0.1, draws=3),
    "pgd": partial(pgd, eps=0.1, step=0.05, steps=3, random_start=True, restarts=2, draws=3),
    "apgd": partial(apgd, eps=0.1, steps=6, restarts=2, draws=3),
    "lbfgs": partial(lbfgs, step=0.5, steps=3, draws=3),
    "lbfgs_szegedy": partial(lbfgs_szegedy, steps=3, searches=2, draws=3),
    "transfer": lambda model, x, y: (
        transfer(model, x, y, surrogate=model, attack=partial(fgsm, eps=0.1), draws=3).x_adv
    ),
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.fixture
def model(batch):
    """Noise, batch norm and dropout, in a mixture of modes, flags and gradients."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(384, 5)
    )
    add_noise(net, ["0", "5"], init=0.2, mean=True, example=batch[0], key=4)
    net.train()
    net[2].eval()
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    return net


def state(model):
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return modes, flags, gradients, values, torch.get_rng_state()


def assert_same(before, after):
    assert before[:2] == after[:2]
    for old, new in zip(before[2], after[2], strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)
    assert [name for name, value in before[3].items() if not torch.equal(value, after[3][name])] == []
    assert torch.equal(before[4], after[4])


def test_everything_is_left_as_found(model, batch, attack):
    x, y = batch
    before, images = state(model), x.clone()
    x_adv = attack(model, x, y)
    assert_same(before, state(model))
    assert torch.equal(x, images)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert not torch.equal(x_adv, x)


def test_also_after_an_exception(model, batch, attack):
    class InTheMiddleError(Exception):
        pass

    class Failing(nn.Module):
        def forward(self, logits):
            raise InTheMiddleError

    model.append(Failing())
    before = state(model)
    with pytest.raises(InTheMiddleError):
        attack(model, *batch)
    assert_same(before, state(model))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_where_the_caller_records_none(conv, batch, attack, context):
    expected = attack(conv, *batch)
    with context():
        x, y = batch[0].clone(), batch[1].clone()
        torch.testing.assert_close(attack(conv, x, y), expected)


def test_images_that_carry_a_graph_are_detached(conv, batch, attack):
    x, y = batch[0].clone().requires_grad_(), batch[1]
    assert not attack(conv, x * 1, y).requires_grad
    assert x.grad is None


def test_no_gradient_of_a_parameter_is_computed(conv, batch):
    flags = []

    class Looking(nn.Module):
        def forward(self, x):
            flags.extend(parameter.requires_grad for parameter in conv.parameters())
            return conv(x)

    looking = Looking()
    looking.conv = conv
    fgsm(looking, *batch, eps=0.1)
    assert flags == [False] * 6


def test_batch_norm_and_dropout_are_attacked_in_eval_mode(batch):
    torch.manual_seed(1)
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 5))
    net[0].running_mean.uniform_()
    expected = pgd(net.eval(), *batch, eps=0.1, step=0.03, steps=5)
    assert torch.equal(pgd(net.train(), *batch, eps=0.1, step=0.03, steps=5), expected)
    assert net[0].training
    assert net[0].num_batches_tracked == 0


def crafting(model, x, y, steps=4):
    """Return the logits that an attack of so many steps sees, all at x itself: equal ones can only mean equal noise."""
    seen = []
    handle = model.register_forward_hook(lambda _module, _args, output: seen.append(output.detach()))
    pgd(model, x, y, eps=0, step=0, steps=steps)
    handle.remove()
    return seen


def different(passes):
    return len(torch.stack([logits.detach() for logits in passes]).flatten(1).unique(dim=0))


def test_attacks_scoring_and_training_all_draw_different_noise(noisy_conv, batch):
    x, y = batch
    first, second = crafting(noisy_conv, x, y), crafting(noisy_conv, x, y)
    scored = [noisy_conv(x) for _ in range(4)]
    third = crafting(noisy_conv, x, y)
    trained = [noisy_conv.train()(x) for _ in range(4)]
    assert different([*first, *second, *scored, *third, *trained]) == 20


def test_attacks_leave_the_noise_of_training_to_the_bit(noisy_conv, batch):
    x, y = batch
    reset_noise(noisy_conv, 3)
    undisturbed = [noisy_conv(x) for _ in range(3)]
    reset_noise(noisy_conv, 3)
    for wanted in undisturbed:
        assert torch.equal(noisy_conv(x), wanted)
        pgd(noisy_conv, x, y, eps=0.1, step=0.1, steps=2, draws=5)
        fgsm(noisy_conv, x, y, eps=0.1)


def test_an_attack_repeats_from_a_reset_and_from_a_saved_state(noisy_conv, batch):
    x, y = batch
    reset_noise(noisy_conv, 3)
    noisy_conv(x)
    saved = {name: value.clone() for name, value in noisy_conv.state_dict().items()}
    wanted = crafting(noisy_conv, x, y)
    for way in ("reset", "loaded"):
        if way == "reset":
            reset_noise(noisy_conv, 3)
            noisy_conv(x)
        else:
            noisy_conv.load_state_dict(saved)
        for seen, logits in zip(crafting(noisy_conv, x, y), wanted, strict=True):
            assert torch.equal(seen, logits)
    reset_noise(noisy_conv, 4)
    assert different([*wanted, *crafting(noisy_conv, x, y)]) == 8


def test_noise_kept_or_reset_inside_or_around_an_attack(noisy_conv, batch):
    x, y = batch
    reset_noise(noisy_conv, 3)
    first = crafting(noisy_conv, x, y)
    with noise_kept(noisy_conv):
        noisy_conv(x)
        crafting(noisy_conv, x, y)
    assert different([*first, *crafting(noisy_conv, x, y)]) == 8  # resumes where the first attack ended
    with prepare_for_attack(noisy_conv):
        reset_noise(noisy_conv, 3)
        inside = noisy_conv(x)
    reset_noise(noisy_conv, 3)
    assert torch.equal(noisy_conv(x), inside)


@pytest.mark.parametrize("mode", [{"mode": "off"}, {"mode": "frozen", "key": 7}])
def test_noise_that_is_off_or_frozen_is_the_same_inside_attacks(noisy_conv, batch, mode):
    x, y = batch
    with sampling(noisy_conv, **mode):
        assert different([noisy_conv(x), *crafting(noisy_conv, x, y), noisy_conv(x)]) == 1


def test_noise_that_waits_for_a_first_batch_is_asked_for_one(conv, batch):
    add_noise(conv, "linear")
    with pytest.raises(InputError, match="needs the shapes of a first batch"):
        fgsm(conv, *batch, eps=0.1)
    conv(batch[0])
    assert not torch.equal(fgsm(conv, *batch, eps=0.1), batch[0])


def test_modes_come_back_after_bad_input_too(model, batch):
    before = state(model)
    with pytest.raises(InputError), prepare_for_attack(model):
        raise InputError("inside")
    assert_same(before, state(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_around_an_attack(batch, attack, dtype):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 5)).to(dtype)
    x, y = batch[0].to(dtype), batch[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = attack(net, x, y)
    assert x_adv.dtype == dtype
    loss = nn.CrossEntropyLoss()
    assert loss(net(x_adv), y) > loss(net(x), y)
