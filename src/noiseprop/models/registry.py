"""The paper's networks by the names of its tables: an architecture, a place for noise, fixed or learned."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from noiseprop.errors import InputError, suggest_name
from noiseprop.models import Activation, cnn, mlp, resnet18, resnet34
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.noise.layer import Init


@dataclass(frozen=True)
class Architecture:
    """A plain network as the paper uses it: how to make it, the images (C, H, W) it takes, and its classes."""

    make: Callable[..., Any]
    image: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class _Noise:
    """Where a variant has noise ("fc" or everywhere), and whether its sigma is learned."""

    everywhere: bool
    learn: bool


def _mlp(classes: int, hidden: tuple[int, ...] = (100, 50), activation: Activation = "relu") -> nn.Module:
    return mlp((784, *hidden, classes), activation)


_DIGIT, _CIFAR, _TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)

_ARCHITECTURES = {
    "MLP": Architecture(_mlp, _DIGIT, 10),
    "CNN": Architecture(cnn, _DIGIT, 10),
    "ResNet18": Architecture(resnet18, _CIFAR, 10),
    "ResNet34": Architecture(resnet34, _TINY, 200),
    "MLP-surrogate": Architecture(partial(_mlp, hidden=(300, 150)), _DIGIT, 10),
    "ResNet18-surrogate": Architecture(partial(resnet18, head=()), _CIFAR, 10),
    "ResNet34-surrogate": Architecture(partial(resnet34, head=()), _TINY, 200),
}

_MLP_NOISE = {"": None, "+": _Noise(False, False), "N": _Noise(False, True)}
_DEEP_NOISE = {
    "": None,
    "-MLP+": _Noise(everywhere=False, learn=False),
    "-A+": _Noise(everywhere=True, learn=False),
    "-MLPN": _Noise(everywhere=False, learn=True),
    "-AN": _Noise(everywhere=True, learn=True),
}

_VARIANTS: dict[str, tuple[str, _Noise | None]] = {
    base + suffix: (base, noise)
    for base in ("MLP", "CNN", "ResNet18", "ResNet34")
    for suffix, noise in (_MLP_NOISE if base == "MLP" else _DEEP_NOISE).items()
}

SURROGATES = {"mnist": "MLP-surrogate", "cifar10": "ResNet18-surrogate", "tiny-imagenet": "ResNet34-surrogate"}
"""The noise-free networks that craft black-box attacks, by data set."""

NAMES = (*_VARIANTS, *SURROGATES.values())
"""All names that `build` knows."""

MOST_CLASSES = 100_000  # more would not fit into memory


def get_architecture(name: str) -> Architecture:
    """The plain network behind a name.

    Raises:
        InputError: the name is unknown.

    Examples:
        >>> architecture("CNN-AN").image
        (1, 28, 28)
    """
    return _ARCHITECTURES[_variant(name)[0]]


def build(
    name: str,
    *,
    activation: Activation = "relu",
    seed: int = 0,
    classes: int | None = None,
    init: Init = 1.0,
    mean: bool = False,
    at_inference: bool = True,
    everywhere: str = "all",
) -> nn.Module:
    """Make one of the paper's networks, with its noise.

    All variants of an architecture start from the same weights for a seed. The defaults are the `paper` protocol's:
    where the paper is silent, sigma starts at 1, there is no mu, and noise acts at inference too.

    Args:
        name: one of `NAMES`; "+" is fixed and "N" learned noise, after "MLP" on the Linear outputs, after "A"
            everywhere.
        activation: "relu" or, for the MLP, "sigmoid".
        seed: decides the weights and is the seed of the noise.
        classes: number of logits, if not the paper's.
        init: sigma's start where it is learned, its value where it is fixed: a number, or "normal" for N(0, 1).
        mean: whether a mean mu is learned too (Figure 1).
        at_inference: whether noise acts in eval mode.
        everywhere: the sites of "A" variants: "all", as in the paper, or the ResNets' "all-released".

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes).

    Raises:
        InputError: an unknown name, an activation that the paper's network does not have, unknown sites, a seed that
            is negative or above 2**63 - 1, or a number of classes out of bounds.

    Source: sections 4.1 to 4.3 of Xiao, Zhang and Peng (2021).

    Examples:
        >>> build("MLPN").fc1.noise.sigma.shape
        torch.Size([100])
    """
    base, noise = _variant(name)
    plain = _ARCHITECTURES[base]
    if not 0 <= seed < 2**63:
        raise InputError(f"build: the seed must be at least 0 and below 2**63, got {seed}")
    if classes is not None and not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"build: {name} with {classes} classes; give between 2 and {MOST_CLASSES:,}")
    if activation != "relu" and not base.startswith("MLP"):
        raise InputError(f"build: {name} has ReLU in the paper, not {activation!r}; only the MLP has a sigmoid variant")
    options = {"activation": activation} if base.startswith("MLP") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = plain.make(classes=classes or plain.classes, **options)
    if noise is None:
        return net
    place = everywhere if noise.everywhere else "fc"
    if place not in net.sites:
        raise InputError(f"build: {name} has no noise sites {place!r}; choose one of {', '.join(net.sites)}")
    return add_noise(
        net,
        net.sites[place],
        init=init,
        learn=noise.learn,
        mean=mean,
        at_inference=at_inference,
        example=torch.zeros(1, *plain.image),
        key=seed,
    )


def _variant(name: str) -> tuple[str, _Noise | None]:
    if name in _VARIANTS:
        return _VARIANTS[name]
    if name in SURROGATES.values():
        return name, None
    known = ", ".join(NAMES)
    raise InputError(
        f"{name!r} is no network of the paper; choose one of {known}, or module:function{suggest_name(name, NAMES)}"
    )
