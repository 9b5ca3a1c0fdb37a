"""Networks in bfloat16, for evaluations that would take too long in float32."""

import torch
from torch import Tensor, nn


class Bfloat16(nn.Module):
    """Network whose convolutions and matrix products run in bfloat16 (torch.autocast) and whose logits are float32.

    Attacks on it use the gradients of exactly this network, so they are white-box attacks on it. bfloat16 has the range
    of float32: small gradients do not vanish, they lose digits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of images (B, C, H, W)."""
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images).float()
