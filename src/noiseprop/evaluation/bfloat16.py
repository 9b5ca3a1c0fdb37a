"""A network in bfloat16, for judging what would take too long in float32."""

import torch
from torch import Tensor, nn


class Bfloat16(nn.Module):
    """A network whose convolutions and matrix products run in bfloat16 (torch.autocast); its logits are float32.

    Attacks on it see the gradients of just this network, so they are white-box attacks on it. bfloat16 has float32's
    range: small gradients do not vanish, they lose digits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images).float()
