"""Hendrycks' generators written out slowly, one image and one pixel at a time, from the definition; draws come in.

Images are uint8 arrays (H, W) or (H, W, C); results are the generators', in [0, 1], before their `np.uint8(... * 255)`.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

PARAMETERS = {
    "cifar10": {
        "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
        "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
        "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
        "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    },
    "tiny-imagenet": {
        "gaussian_noise": [0.04, 0.08, 0.12, 0.15, 0.18],
        "impulse_noise": [0.01, 0.02, 0.05, 0.08, 0.14],
        "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
        "glass_blur": [(0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)],
    },
    "mnist": {
        "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
        "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
        "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
        "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    },
}


def gaussian_noise(image, c, draws):
    x = np.array(image) / 255.0
    return np.clip(x + draws * c, 0, 1)


def impulse_noise(image, c, draws):
    x = np.array(image) / 255.0
    out = x.copy()
    replaced, coin = draws
    for place in np.ndindex(x.shape):
        if replaced[place] < c:
            out[place] = 1.0 if coin[place] < 0.5 else 0.0
    return np.clip(out, 0, 1)


def contrast(image, c):
    x = np.array(image) / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return np.clip((x - means) * c + means, 0, 1)


def smooth(x, sigma):
    """scikit-image's gaussian: channels apart, mode nearest, truncate 4."""
    sigmas = (sigma, sigma) if x.ndim == 2 else (sigma, sigma, 0)
    return gaussian_filter(x, sigmas, mode="nearest", truncate=4.0)


def glass_blur(image, c, next_offset):
    """`next_offset(iteration, h, w)` gives (dx, dy)."""
    sigma, delta, iterations = c
    x = np.uint8(smooth(np.array(image) / 255.0, sigma) * 255)
    rows, columns = x.shape[:2]
    for iteration in range(iterations):
        for h in range(rows - delta, delta, -1):
            for w in range(columns - delta, delta, -1):
                dx, dy = next_offset(iteration, h, w)
                h_prime, w_prime = h + dy, w + dx
                x[h, w], x[h_prime, w_prime] = x[h_prime, w_prime], x[h, w]
    return np.clip(smooth(x / 255.0, sigma), 0, 1)
