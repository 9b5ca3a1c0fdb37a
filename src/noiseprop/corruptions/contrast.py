"""Contrast reduced towards the mean of each image, channel by channel, without randomness."""

import numpy as np

from noiseprop.corruptions.arrays import Floats

# remaining share of the distance from the mean, severities 1 to 5
FACTOR = {
    "cifar10": (0.75, 0.5, 0.4, 0.3, 0.15),
    "tiny-imagenet": (0.4, 0.3, 0.2, 0.1, 0.05),
    "mnist": (0.4, 0.3, 0.2, 0.1, 0.05),
}


def apply_contrast(x: Floats, factor: float) -> Floats:
    """Return clip((x - mean) * factor + mean, 0, 1), with the mean over one channel of one image.

    Args:
        x: (B, H, W, C) or (B, H, W), C-contiguous: NumPy's order of summation depends on the memory layout, and the
            last bit of the mean can decide a truncation.
        factor: above 0.

    Source: Hendrycks and Dietterich 2019, `contrast`.
    """
    mean = np.ascontiguousarray(x).mean(axis=(1, 2), keepdims=True)
    return np.clip((x - mean) * factor + mean, 0, 1)
