"""Passes that end in an exception, such as feature extraction by a hook that stops the model."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from noiseprop import add_noise, is_noisy, remove_noise, reset_noise, sampling

PIXELS = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SERIES = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(3))


class Stop(Exception):  # noqa: N818 - nothing is wrong
    """Ends a pass as soon as the features are there."""


class CellNet(nn.Module):
    """A recurrent cell that is called once for each of four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Wrapper(nn.Module):
    """Module that goes past the hooks of the model inside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output = self.model.forward(x)
        return output if isinstance(output, Tensor) else output.logits


def make_vit() -> tuple[nn.Module, nn.Module, Tensor]:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = add_noise(ViTForImageClassification(config).eval(), "linear", granularity="channel", example=PIXELS)
    return model, model.vit.layernorm, PIXELS


def make_swapped_stem() -> tuple[nn.Module, nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    add_noise(model, "all", granularity="channel")
    model[0] = nn.Conv2d(3, 4, 3)
    return model, model[3], PIXELS


def make_cells() -> tuple[nn.Module, nn.Module, Tensor]:
    model = add_noise(CellNet(), "all", example=SERIES)
    return model, model.cell, SERIES


each_network = pytest.mark.parametrize("make", [make_vit, make_swapped_stem, make_cells])


def build(make) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    return make()


def stop_at(model: nn.Module, part: nn.Module, x: Tensor) -> None:
    """Run a model until one of its parts has an output."""

    def stop(*_: object) -> None:
        raise Stop

    handle = part.register_forward_hook(stop)
    with pytest.raises(Stop):
        model(x)
    handle.remove()


@each_network
@pytest.mark.parametrize("copied", ["same", "deepcopy", "pickle"])
@torch.no_grad()
def test_noise_goes_on_as_after_a_whole_pass(make, copied):
    """Also through a wrapper, whose passes no hook of the model delimits."""
    untouched, _, x = build(make)
    model, part, _ = build(make)
    path = next(name for name, module in model.named_modules() if module is part)
    if copied != "same":
        model = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    stop_at(model, model.get_submodule(path), x)
    for whole, stopped in ((Wrapper(untouched), Wrapper(model)), (untouched, model)):
        outputs = []
        for net in (whole, stopped, stopped):
            reset_noise(net, 3)
            outputs.append([read_logits(net, x) for _ in range(2)])
        for expected, first, second in zip(*outputs, strict=True):
            assert torch.equal(first, expected)
            assert torch.equal(second, expected)
        assert not torch.equal(*outputs[0])


def read_logits(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return output if isinstance(output, Tensor) else output.logits


@each_network
@pytest.mark.parametrize("through_wrapper", [False, True])
@pytest.mark.parametrize(
    "options", [{"mode": "frozen", "key": 5}, {"draws": 3}, {"mode": "frozen", "key": 5, "draws": 3}]
)
@torch.no_grad()
def test_a_block_that_an_exception_left_changes_nothing_after_it(make, options, through_wrapper):
    untouched, _, x = build(make)
    model, part, _ = build(make)
    called = Wrapper(model) if through_wrapper else model
    with sampling(called, **options):
        stop_at(called, part, x)
    for net in (untouched, model):
        reset_noise(net, 3)
    assert torch.equal(Wrapper(model)(x), Wrapper(untouched)(x))
    with sampling(model, "frozen", key=4):
        frozen = read_logits(model, x)
        assert torch.equal(read_logits(model, x), frozen)


@each_network
def test_removal_leaves_no_hook_behind(make):
    model, _, _ = build(make)
    remove_noise(model)
    assert not is_noisy(model)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_hooks_always_called
        assert not module._forward_hooks_with_kwargs
