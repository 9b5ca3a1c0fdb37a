"""Salt-and-pepper noise, independent for every pixel and channel."""

import numpy as np
import torch

from noiseprop.corruptions.arrays import Floats

# share of replaced elements, severities 1 to 5
IMPULSE_AMOUNT = {
    "cifar10": (0.01, 0.02, 0.03, 0.05, 0.07),
    "tiny-imagenet": (0.01, 0.02, 0.05, 0.08, 0.14),
    "mnist": (0.03, 0.06, 0.09, 0.17, 0.27),
}


def draw_impulses(shape: tuple[int, ...], generator: torch.Generator) -> Floats:
    """Return two uniform draws in [0, 1) per element, (2, *shape): for its replacement and for salt or pepper."""
    return torch.rand((2, *shape), dtype=torch.float64, generator=generator, device=generator.device).cpu().numpy()


def apply_impulse_noise(x: Floats, draws: Floats, amount: float) -> Floats:
    """Set each element to 1 with probability amount / 2, to 0 with the same probability, and keep it otherwise.

    Source: Hendrycks and Dietterich 2019, `impulse_noise`, which is scikit-image's random_noise(mode="s&p").
    """
    replaced, salt = draws[0] < amount, draws[1] < 0.5
    return np.where(replaced, salt.astype(np.float64), x)
