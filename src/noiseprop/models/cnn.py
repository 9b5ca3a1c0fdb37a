"""Convolutional network of the paper for 28 x 28 digits."""

from torch import Tensor, nn
from torch.nn import functional


class CNN(nn.Module):
    """Two convolutions with pooling and two Linear layers; see `cnn`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, classes)
        self.sites: dict[str, tuple[str, ...]] = {"fc": ("fc1", "fc2"), "all": ("conv1", "conv2", "fc1", "fc2")}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, 1, 28, 28) in [0, 1]."""
        # Pooling first gives the same numbers, because ReLU is monotonic, with a quarter of the work.
        maps = functional.relu(functional.max_pool2d(self.conv1(images), 2))  # (B, 32, 14, 14)
        maps = functional.relu(functional.max_pool2d(self.conv2(maps), 2))  # (B, 64, 7, 7)
        return self.fc2(functional.relu(self.fc1(maps.flatten(1))))


def cnn(classes: int = 10) -> CNN:
    """Return the CNN of the paper: conv 1→32, pool, conv 32→64, pool, 3136-128-classes, with ReLU throughout.

    Args:
        classes: number of logits.

    Returns:
        A network that maps images (B, 1, 28, 28) in [0, 1] to logits (B, classes). Its `sites` name the Linear layers
        under "fc", and these and the convolutions, whose noise lies before the ReLU, under "all".

    Source: section 4.1 of Xiao, Zhang and Peng (2021). The released code feeds these 3136 features into `Linear(1152)`
    and so does not run; the text describes 3136.

    Examples:
        >>> cnn().sites["all"]
        ('conv1', 'conv2', 'fc1', 'fc2')
    """
    return CNN(classes)
