"""Additive Gaussian noise, independent for every pixel and channel."""

import numpy as np
import torch

from noiseprop.corruptions.arrays import Floats

# standard deviation in units of [0, 1], severities 1 to 5
GAUSSIAN_SIGMA = {
    "cifar10": (0.04, 0.06, 0.08, 0.09, 0.10),
    "tiny-imagenet": (0.04, 0.08, 0.12, 0.15, 0.18),
    "mnist": (0.08, 0.12, 0.18, 0.26, 0.38),
}


def draw_gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Floats:
    """Return standard normal draws of the images' shape."""
    return torch.randn(shape, dtype=torch.float64, generator=generator, device=generator.device).cpu().numpy()


def apply_gaussian_noise(x: Floats, draws: Floats, sigma: float) -> Floats:
    """Return clip(x + sigma * draws, 0, 1).

    Source: Hendrycks and Dietterich 2019, `gaussian_noise`; NumPy's normal(scale=sigma) is sigma * draw, to the bit.
    """
    return np.clip(x + sigma * draws, 0, 1)
