"""Contrast drawn towards each image's mean, channel by channel; nothing in it is random."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# what is left of the distance from the mean, severities 1 to 5
FACTOR = {
    "cifar10": (0.75, 0.5, 0.4, 0.3, 0.15),
    "tiny-imagenet": (0.4, 0.3, 0.2, 0.1, 0.05),
    "mnist": (0.4, 0.3, 0.2, 0.1, 0.05),
}


def apply(x: Floats, factor: float) -> Floats:
    """clip((x - mean) * factor + mean, 0, 1), the mean being that of one channel of one image.

    Args:
        x: (B, H, W, C) or (B, H, W), C-contiguous: NumPy's order of summation depends on the memory layout, and the
            mean's last bit decides which way a truncation falls.
        factor: above 0.

    Source: Hendrycks and Dietterich 2019, `contrast`.
    """
    mean = np.ascontiguousarray(x).mean(axis=(1, 2), keepdims=True)
    return np.clip((x - mean) * factor + mean, 0, 1)
