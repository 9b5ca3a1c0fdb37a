"""Random crops and flips of whole batches."""

import torch
from torch import Tensor
from torch.nn import functional

from noiseprop.errors import InputError


def crop_and_flip(x: Tensor, *, padding: int = 4, generator: torch.Generator) -> Tensor:
    """Pad images with zeros, crop each at random to its former size, and mirror half of them.

    Draws, in this order: row and column offsets, `randint(0, 2 * padding + 1, (2, B))`, then the flips,
    `randint(0, 2, (B,))`.

    Args:
        x: images, (B, C, H, W), any dtype.
        padding: pixels on each side.
        generator: the only source of randomness.

    Returns:
        A new tensor of x's shape, dtype and device.

    Raises:
        InputError: x is not a batch of images, or the padding is negative.

    Source:
        The paper's released code (random crop with padding 4, horizontal flip).

    Examples:
        >>> x = torch.rand(2, 3, 8, 8)
        >>> crop_and_flip(x, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
    """
    if x.ndim != 4:
        raise InputError(f"images have shape {tuple(x.shape)}, expected (B, C, H, W); add the missing dimensions")
    if padding < 0:
        raise InputError(f"padding is {padding}, expected at least 0")
    B, _, H, W = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, B), generator=generator, device=generator.device).to(x.device)
    mirrored = torch.randint(0, 2, (B,), generator=generator, device=generator.device).to(x.device, torch.bool)
    padded = functional.pad(x, (padding,) * 4)
    windows = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    cropped = windows[torch.arange(B, device=x.device), :, offsets[0], offsets[1]]  # (B, C, H, W)
    return torch.where(mirrored.view(B, 1, 1, 1), cropped.flip(3), cropped)
