"""Multilayer perceptron with a noise site at every Linear output, including the last one."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from noiseprop.errors import InputError

Activation = Literal["relu", "sigmoid"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class MLP(nn.Module):
    """Linear layers `fc1`, `fc2`, … with one activation between them; see `mlp`."""

    def __init__(self, sizes: Sequence[int], activation: Activation) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"mlp: sizes must be two or more positive numbers of neurons, got {tuple(sizes)}")
        if activation not in _ACTIVATIONS:
            raise InputError(f"mlp: unknown activation {activation!r}; choose one of {', '.join(_ACTIVATIONS)}")
        names = tuple(f"fc{i}" for i in range(1, len(sizes)))
        for name, fan_in, fan_out in zip(names, sizes[:-1], sizes[1:], strict=True):
            self.add_module(name, nn.Linear(fan_in, fan_out))
        self.activation = _ACTIVATIONS[activation]()
        self.sites: dict[str, tuple[str, ...]] = {"fc": names, "all": names}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W) in [0, 1]; they are flattened here."""
        hidden = images.flatten(1)  # (B, sizes[0])
        *inner, last = self.sites["fc"]
        for name in inner:
            hidden = self.activation(self.get_submodule(name)(hidden))
        return self.get_submodule(last)(hidden)


def mlp(sizes: Sequence[int] = (784, 100, 50, 10), activation: Activation = "relu") -> MLP:
    """Return the MLP of the paper: fully connected layers with an activation between them.

    Args:
        sizes: neurons per layer, the input's values first and the classes last.
        activation: "relu" or "sigmoid", after every layer but the last.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] with C*H*W = sizes[0] to logits (B, sizes[-1]);
        its `sites` name the layers `fc1`, `fc2`, … under "fc" and, the same, under "all".

    Raises:
        InputError: fewer than two sizes, a size below 1, or an unknown activation.

    Source: section 4.1 of Xiao, Zhang and Peng (2021).

    Examples:
        >>> mlp().sites["fc"]
        ('fc1', 'fc2', 'fc3')
    """
    return MLP(sizes, activation)
