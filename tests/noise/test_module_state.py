"""Check that models whose train() and eval() have effects are left as they were found."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from noiseprop.noise.module_state import preserve_modes


class MergedLoRA(nn.Module):
    """A linear layer whose low-rank update is merged into the weight in eval mode, as LoRA's first code does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(3, 2))
        self.merged = False
        self.switches: list[bool] = []

    def train(self, mode: bool = True) -> "MergedLoRA":
        super().train(mode)
        self.switches.append(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.merged else self.weight + self.b @ self.a
        return x @ weight.T


class ReplacedParameter(MergedLoRA):
    """A layer that merges into a new Parameter object and freezes it."""

    def train(self, mode: bool = True) -> "ReplacedParameter":
        nn.Module.train(self, mode)
        if self.merged == mode:
            sign = -1 if mode else 1
            self.weight = nn.Parameter((self.weight + sign * self.b @ self.a).detach(), requires_grad=mode)
            self.a.requires_grad_(mode)
            self.merged = not mode
        return self


class FusedBranches(nn.Module):
    """Two branches that eval() fuses into one, as RepVGG does, deleting the modules that were trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)
        self.head = nn.Linear(3, 3)

    def eval(self) -> "FusedBranches":
        super().eval()
        if hasattr(self, "left"):
            self.fused = nn.Linear(5, 3)
            self.fused.weight.data = self.left.weight.data + self.right.weight.data
            self.fused.bias.data = self.left.bias.data + self.right.bias.data
            del self.left, self.right
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fused(x) if hasattr(self, "fused") else self.left(x) + self.right(x))


class FrozenNorm(nn.Sequential):
    """Batch norms that stay in eval mode when the model trains, as in detectron's backbones."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        self.train()

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        self[1].eval()
        for parameter in self[1].parameters():
            parameter.requires_grad_(not mode)
        return self


@dataclass
class Adapter:
    """State of an adapter outside the module's attributes."""

    weight: Tensor
    merged: bool = False


class AdapterObject(nn.Module):
    """A layer whose flag and update are held by a plain object."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(5, 3)
        self.adapters = {"default": [Adapter(torch.randn(3, 5))]}

    @property
    def merged(self) -> bool:
        return self.adapters["default"][0].merged

    def train(self, mode: bool = True) -> "AdapterObject":
        super().train(mode)
        (adapter,) = self.adapters["default"]
        if adapter.merged == mode:
            self.linear.weight.data += (-1 if mode else 1) * adapter.weight
            adapter.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        (adapter,) = self.adapters["default"]
        return self.linear(x) + (0 if adapter.merged else x @ adapter.weight.T)


MODELS = [AdapterObject, MergedLoRA, ReplacedParameter, FusedBranches, FrozenNorm]


def describe_state(model: nn.Module) -> dict[str, Any]:
    """Return all that must stay: order, identity, values, flags and modes."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "parameters": [(name, id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()],
        "values": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "merged": getattr(model, "merged", None),
        "switches": [*getattr(model, "switches", [])],
    }


@pytest.mark.parametrize("make", MODELS)
def test_all_that_eval_changes_is_put_back(make: type[nn.Module]) -> None:
    model, x = make(), torch.randn(4, 5)
    expected = copy.deepcopy(model).eval()(x)
    before = describe_state(model)
    with preserve_modes(model, training=False):
        assert not model.training
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert describe_state(model) == before


@pytest.mark.parametrize("make", MODELS)
def test_the_next_backward_reaches_the_same_parameters(make: type[nn.Module]) -> None:
    model, x = make(), torch.randn(4, 5)
    torch.manual_seed(3)
    untouched = copy.deepcopy(model)
    torch.manual_seed(3)
    untouched(x).square().sum().backward()
    expected = [p.grad for p in untouched.parameters()]
    parameters = list(model.parameters())
    torch.manual_seed(3)
    loss = model(x).square().sum()  # recorded before the block, and still to be differentiated after it
    with preserve_modes(model, training=False):
        model(x)
    loss.backward()
    for parameter, grad in zip(parameters, expected, strict=True):
        assert (parameter.grad is None) == (grad is None)
        if grad is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=0)


def test_the_model_is_restored_after_an_exception_also_one_of_its_own_eval() -> None:
    model = MergedLoRA()
    before = describe_state(model)
    with pytest.raises(KeyError), preserve_modes(model, training=False):
        raise KeyError
    assert describe_state(model) == before

    class Failing(MergedLoRA):
        def eval(self) -> "Failing":
            super().eval()
            raise ValueError("half done")

    failing = Failing()
    before = describe_state(failing)
    with pytest.raises(ValueError, match="half done"), preserve_modes(failing, training=False):
        pass
    assert describe_state(failing) == before


def test_eval_is_called_once_and_not_at_all_in_eval_mode() -> None:
    model = MergedLoRA()
    with preserve_modes(model, training=False):
        assert model.switches == [False]
        with preserve_modes(model, training=False):
            assert model.switches == [False]
    model.eval()
    weight = model.weight.clone()
    with preserve_modes(model, training=False):
        assert torch.equal(model.weight, weight)
    assert model.switches == [False]


def test_training_mode_is_entered_for_a_block_too() -> None:
    model = MergedLoRA().eval()
    merged = model.weight.clone()
    before = describe_state(model)
    with preserve_modes(model, training=True):
        assert model.training
        assert not model.merged
        torch.testing.assert_close(model.weight, merged - model.b @ model.a)
    assert describe_state(model) == before
    assert torch.equal(model.weight, merged)


def test_changes_of_the_block_stay() -> None:
    model = FrozenNorm()
    with preserve_modes(model, training=False):
        model.note = "new"  # type: ignore[assignment]
        model[0].weight.data.fill_(2.0)
        model(torch.ones(1, 5)).sum().backward()
    assert model.note == "new"
    assert model[0].weight.eq(2).all()
    assert model[3].bias.grad is not None


def test_modes_without_a_switch_are_restored_alone() -> None:
    model = MergedLoRA()
    with preserve_modes(model, training=None):
        assert model.training
        model.training = False
    assert model.training
    assert model.switches == []


def test_a_hugging_face_model_with_frozen_embeddings() -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_labels=3, hidden_dropout_prob=0.5,
    )  # fmt: skip
    model = ViTForImageClassification(config).train()
    model.vit.embeddings.eval()
    before = describe_state(model)
    x = torch.randn(2, 3, 8, 8)
    with preserve_modes(model, training=False):
        assert torch.equal(model(x).logits, model(x).logits)  # no dropout
    assert describe_state(model) == before
    assert model.training
    assert not model.vit.embeddings.training
