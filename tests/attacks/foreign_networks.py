"""Networks unlike the examples, for images (B, 3, 8, 8): Hugging Face, custom train(), normalisation in place."""

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

CLASSES = 4


class Logits(nn.Module):
    """Hugging Face classifier that returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).logits


def hugging_face() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        hidden_dropout_prob=0.2,
        initializer_range=0.3,
    )
    return Logits(ViTForImageClassification(config))


class LoraLinear(nn.Linear):
    """Linear layer with a low-rank update that eval() merges into the weight and train() takes out again.

    As in some versions of LoRA, a layer in eval mode relies on the merge.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs) / 4), nn.Parameter(torch.randn(outputs, 2) / 4)
        self.merged = False

    def train(self, mode: bool = True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self

    def forward(self, x):
        y = super().forward(x)
        return y if self.merged or not self.training else y + x @ self.down.T @ self.up.T


def lora() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), LoraLinear(192, 24), nn.GELU(), nn.Dropout(0.3), LoraLinear(24, CLASSES))


class FrozenNorms(nn.Module):
    """Convolutional network whose train() leaves batch norms in eval mode, frozen, as detection models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, CLASSES)
        nn.init.normal_(self.norm.running_mean)

    def train(self, mode: bool = True):
        super().train(mode)
        self.norm.eval()
        self.norm.weight.requires_grad_(False)
        self.norm.bias.requires_grad_(False)
        return self

    def forward(self, x):
        return self.head(nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2).flatten(1))


def frozen_norms() -> nn.Module:
    torch.manual_seed(2)
    return FrozenNorms().train()


class Normalised(nn.Module):
    """Network behind a normalisation of its input, in place or not."""

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.model, self.in_place = model, in_place

    def forward(self, x):
        return self.model(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25)


NETWORKS = {"hugging face": hugging_face, "lora": lora, "frozen norms": frozen_norms}


def images(count: int = 12, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 8, 8), some of their pixels exactly 0 or 1, and labels."""
    generator = torch.Generator().manual_seed(3)
    x = (1.4 * torch.rand(count, 3, 8, 8, generator=generator) - 0.2).clamp(0, 1)
    return x.to(dtype), torch.randint(CLASSES, (count,), generator=generator)
