"""ResNet18 for 32 x 32 and ResNet34 for 64 x 64 images, with the noise sites of the paper and of its released code."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.models.mlp import mlp

# Mean and standard deviation per channel over all training pixels, in units of [0, 1].
CIFAR10_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TINY_IMAGENET_PIXELS = ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))

_WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two 3 x 3 convolutions and the shortcut around them, added in `sum` before the last activation."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.sum = nn.Identity()  # no layer's own output, so an Identity gives it a name: a site of the released code

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels, H/stride, W/stride)."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(maps)))))
        return functional.relu(self.sum(residual + self.shortcut(maps)))


class ResNet(nn.Module):
    """Stem, four stages of blocks, average pooling and a head of Linear layers; see `resnet18` and `resnet34`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stem: nn.Conv2d,
        stem_pool: nn.Module,
        blocks: Sequence[int],
        pool: nn.Module,
        head: Sequence[int],
        pixels: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(pixels[0]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(pixels[1]).view(-1, 1, 1))
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.stem_pool = stem_pool
        channels_in = _WIDTHS[0]
        for stage, (channels, depth) in enumerate(zip(_WIDTHS, blocks, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (depth - 1)
            fan_in = [channels_in] + [channels] * (depth - 1)
            layers = [Block(n, channels, stride) for n, stride in zip(fan_in, strides, strict=True)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            channels_in = channels
        self.pool = pool
        self.head = mlp(head)
        names = [f"layer{stage}.{block}" for stage, depth in enumerate(blocks, start=1) for block in range(depth)]
        self.sites = _name_sites(names, self.head.sites["fc"])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, 3, H, W) in [0, 1], which are normalised here."""
        maps = (images - self.mean) / self.std
        maps = self.stem_pool(functional.relu(self.bn1(self.conv1(maps))))
        for stage in range(1, 5):
            maps = self.get_submodule(f"layer{stage}")(maps)
        return self.head(self.pool(maps))


def _name_sites(blocks: Sequence[str], head: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return noise sites by placement; see `resnet18`."""
    linears = tuple(f"head.{name}" for name in head)
    return {
        "fc": linears,
        "all": (*(f"{block}.conv2" for block in blocks), *linears),
        "all-released": ("bn1", *(f"{block}.sum" for block in blocks), *linears),
    }


def resnet18(
    *,
    classes: int = 10,
    head: Sequence[int] = (256, 128),
    pixels: tuple[Sequence[float], Sequence[float]] = CIFAR10_PIXELS,
) -> ResNet:
    """Return a ResNet18 for 32 x 32 images: 3 x 3 stem, 64-128-256-512 channels x 2 blocks, a head 512-256-128-classes.

    Args:
        classes: number of logits.
        head: hidden sizes of the head; () is the original single Linear, the paper's black-box surrogate.
        pixels: mean and standard deviation per channel, in [0, 1]; kept as buffers and applied inside the network.

    Returns:
        A network that maps images (B, 3, 32, 32) in [0, 1] to logits (B, classes). Its `sites` are
        "fc": the head's Linear outputs;
        "all": those and the output of the last convolution of each block (no stem), as in the paper;
        "all-released": those of "fc", each block after the addition and before its activation, and the stem's
        BatchNorm, as in the released code.

    Source: section 4.2 of Xiao, Zhang and Peng (2021); shapes where the text is silent from the released code.

    Examples:
        >>> resnet18().sites["fc"]
        ('head.fc1', 'head.fc2', 'head.fc3')
    """
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return ResNet(stem, nn.Identity(), (2, 2, 2, 2), nn.AvgPool2d(4), (512, *head, classes), pixels)


def resnet34(
    *,
    classes: int = 200,
    head: Sequence[int] = (1024, 512, 256),
    pixels: tuple[Sequence[float], Sequence[float]] = TINY_IMAGENET_PIXELS,
) -> ResNet:
    """Return a ResNet34 for 64 x 64 images: 7 x 7 stem of stride 2, max-pool 3 of stride 1, 3-4-6-3 blocks.

    The 4 x 4 maps are averaged to 2 x 2, so that the head is 2048-1024-512-256-classes.

    Args:
        classes: number of logits.
        head: hidden sizes of the head; () is the original single Linear, the paper's black-box surrogate.
        pixels: mean and standard deviation per channel, in [0, 1]; kept as buffers and applied inside the network.

    Returns:
        A network that maps images (B, 3, 64, 64) in [0, 1] to logits (B, classes), with the sites of `resnet18`.

    Source: section 4.3 of Xiao, Zhang and Peng (2021); shapes where the text is silent from the released code.

    Examples:
        >>> len(resnet34().sites["all"])
        20
    """
    stem = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    stem_pool = nn.MaxPool2d(3, stride=1, padding=1)
    return ResNet(stem, stem_pool, (3, 4, 6, 3), nn.AvgPool2d(2), (4 * 512, *head, classes), pixels)
