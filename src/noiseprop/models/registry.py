"""Networks of the paper by name: an architecture, noise sites, and fixed or learned noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import nn

from noiseprop.errors import InputError, suggest_name
from noiseprop.models import Activation, cnn, mlp, resnet18, resnet34
from noiseprop.noise.attach.add_noise import add_noise
from noiseprop.noise.layer import Init


class RegisteredModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="registry"):
    """Arguments of `build`, as run folders hold them."""

    name: Annotated[str, msgspec.Meta(max_length=100)]
    activation: Activation = "relu"
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    classes: Annotated[int, msgspec.Meta(ge=2, le=100_000)] | None = None
    init: float | Literal["normal"] = 1.0
    mean: bool = False
    at_inference: bool = True
    everywhere: Annotated[str, msgspec.Meta(max_length=100)] = "all"


@dataclass(frozen=True)
class Architecture:
    """Network without noise: its constructor, the shape (C, H, W) of its images and its number of classes."""

    make: Callable[..., Any]
    image: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class VariantNoise:
    """Noise of a variant: on all sites or on the Linear outputs only, with learned or fixed sigma."""

    everywhere: bool
    learn: bool


@dataclass(frozen=True)
class Variant:
    """Named network of the paper: its architecture, and its noise or None."""

    architecture: Architecture
    noise: VariantNoise | None

    @property
    def has_learned_noise(self) -> bool:
        """Return whether the network has noise whose sigma is learned."""
        return self.noise is not None and self.noise.learn


def _make_mlp(classes: int, hidden: tuple[int, ...] = (100, 50), activation: Activation = "relu") -> nn.Module:
    return mlp((784, *hidden, classes), activation)


_DIGIT, _CIFAR, _TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)

_ARCHITECTURES = {
    "MLP": Architecture(_make_mlp, _DIGIT, 10),
    "CNN": Architecture(cnn, _DIGIT, 10),
    "ResNet18": Architecture(resnet18, _CIFAR, 10),
    "ResNet34": Architecture(resnet34, _TINY, 200),
    "MLP-surrogate": Architecture(partial(_make_mlp, hidden=(300, 150)), _DIGIT, 10),
    "ResNet18-surrogate": Architecture(partial(resnet18, head=()), _CIFAR, 10),
    "ResNet34-surrogate": Architecture(partial(resnet34, head=()), _TINY, 200),
}

_MLP_NOISE = {"": None, "+": VariantNoise(False, False), "N": VariantNoise(False, True)}
_DEEP_NOISE = {
    "": None,
    "-MLP+": VariantNoise(everywhere=False, learn=False),
    "-A+": VariantNoise(everywhere=True, learn=False),
    "-MLPN": VariantNoise(everywhere=False, learn=True),
    "-AN": VariantNoise(everywhere=True, learn=True),
}

_VARIANTS: dict[str, tuple[str, VariantNoise | None]] = {
    base + suffix: (base, noise)
    for base in ("MLP", "CNN", "ResNet18", "ResNet34")
    for suffix, noise in (_MLP_NOISE if base == "MLP" else _DEEP_NOISE).items()
}

SURROGATES = {"mnist": "MLP-surrogate", "cifar10": "ResNet18-surrogate", "tiny-imagenet": "ResNet34-surrogate"}
"""Noise-free networks that craft black-box attacks, by data set."""

NAMES = (*_VARIANTS, *SURROGATES.values())
"""Names of all networks that `build` makes."""

MAX_CLASSES = 100_000  # more would not fit into memory


def get_architecture(name: str) -> Architecture:
    """Return the network without noise behind a name.

    Raises:
        InputError: the name is unknown.

    Examples:
        >>> get_architecture("CNN-AN").image
        (1, 28, 28)
    """
    return get_variant(name).architecture


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
    """Return a new network of the paper, with its noise.

    All variants of an architecture start from the same weights for a seed. The defaults are those of the `paper`
    protocol: unless the paper states otherwise, sigma starts at 1, mu is absent, and noise acts at inference, too.

    Args:
        name: one of `NAMES`; "+" means fixed and "N" learned noise, after "MLP" on the Linear outputs, after "A"
            everywhere.
        activation: "relu" or, for the MLP, "sigmoid".
        seed: seed of the weights and of the noise.
        classes: number of logits; None for that of the paper.
        init: first value of learned sigma, value of fixed sigma: a number, or "normal" for N(0, 1).
        mean: whether a mean mu is learned, too (Figure 1).
        at_inference: whether noise acts in eval mode.
        everywhere: sites of the "A" variants: "all", as in the paper, or "all-released" for ResNets.

    Returns:
        A network that maps images (B, C, H, W) in [0, 1] to logits (B, classes).

    Raises:
        InputError: the name or the sites are unknown, the network has no such activation, the seed is negative or
            above 2**63 - 1, or the number of classes is out of bounds.

    Source: sections 4.1 to 4.3 of Xiao, Zhang and Peng (2021).

    Examples:
        >>> build("MLPN").fc1.noise.sigma.shape
        torch.Size([100])
    """
    variant = get_variant(name)
    plain, noise, is_mlp = variant.architecture, variant.noise, name.startswith("MLP")
    if not 0 <= seed < 2**63:
        raise InputError(f"build: the seed must be at least 0 and below 2**63, got {seed}")
    if classes is not None and not 2 <= classes <= MAX_CLASSES:
        raise InputError(f"build: {name} has {classes} classes; expected between 2 and {MAX_CLASSES:,}")
    if activation != "relu" and not is_mlp:
        raise InputError(f"build: {name} has ReLU in the paper, not {activation!r}; only the MLP has a sigmoid variant")
    options = {"activation": activation} if is_mlp else {}
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


def get_variant(name: str) -> Variant:
    """Return the architecture and the noise behind a name.

    Raises:
        InputError: the name is unknown.

    Examples:
        >>> get_variant("MLPN").has_learned_noise, get_variant("MLP+").has_learned_noise
        (True, False)
    """
    if name in _VARIANTS:
        base, noise = _VARIANTS[name]
        return Variant(_ARCHITECTURES[base], noise)
    if name in SURROGATES.values():
        return Variant(_ARCHITECTURES[name], None)
    known = ", ".join(NAMES)
    raise InputError(
        f"{name!r} is not a network of the paper; choose one of {known}, or module:function{suggest_name(name, NAMES)}"
    )
