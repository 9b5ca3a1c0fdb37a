"""Time the corruptions beside the definition's own loops: `python benchmarks/corruptions.py`.

Claim: glass blur of 32 x 32 images is at least 40 times as fast as the reference loop (Hendrycks' generator, one image
and one pixel after the other, drawing as it goes). The other kinds are timed beside the per-image definition, too.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from noiseprop.corruptions import SEVERITIES, corrupt
from noiseprop.corruptions.glass_blur import GLASS

OURS, THEIRS = 512, 12  # images per repeat
REPEATS = 5


def reference_glass_blur(image: np.ndarray, severity: int, params: str, rng: np.random.RandomState) -> np.ndarray:
    """Hendrycks' loop over pixels, for (H, W) or (H, W, 3) uint8."""
    sigma, delta, iterations = GLASS[params][severity - 1]
    sigmas = (sigma, sigma) if image.ndim == 2 else (sigma, sigma, 0)
    x = np.uint8(gaussian_filter(image / 255.0, sigmas, mode="nearest", truncate=4.0) * 255)
    rows, columns = x.shape[:2]
    for _ in range(iterations):
        for h in range(rows - delta, delta, -1):
            for w in range(columns - delta, delta, -1):
                dx, dy = rng.randint(-delta, delta, size=(2,))
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return np.clip(gaussian_filter(x / 255.0, sigmas, mode="nearest", truncate=4.0), 0, 1)


def best(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some runs, after one discarded warm-up."""
    run()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def glass_row(channels: int, params: str, severity: int) -> tuple[float, float]:
    """Microseconds per image: the reference loop's and ours."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (OURS, 32, 32, channels), dtype=np.uint8)
    few = images[:THEIRS, :, :, 0] if channels == 1 else images[:THEIRS]
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    theirs = best(lambda: [reference_glass_blur(image, severity, params, rng) for image in few], 2) / THEIRS
    ours = best(lambda: corrupt(batch, "glass_blur", severity=severity, params=params, generator=generator)) / OURS
    return theirs * 1e6, ours * 1e6


def main() -> None:
    """Print one line per setting."""
    print(f"glass blur, 32 x 32, {OURS} images, {torch.get_num_threads()} threads; microseconds per image")
    worst = float("inf")
    for channels, params in ((3, "cifar10"), (1, "cifar10"), (3, "tiny-imagenet"), (1, "mnist")):
        for severity in SEVERITIES:
            theirs, ours = glass_row(channels, params, severity)
            worst = min(worst, theirs / ours)
            print(f"C={channels} {params:13} {severity}: loop {theirs:8.0f}  ours {ours:6.1f}  x{theirs / ours:5.0f}")
    print(f"slowest case: {worst:.0f} times the loop's speed (claim: 40)")
    batch = torch.rand(OURS, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    for kind in ("gaussian_noise", "impulse_noise", "contrast"):
        ours = best(lambda k=kind: corrupt(batch, k, severity=3, params="cifar10", generator=generator)) / OURS
        print(f"{kind:14} C=3 cifar10: ours {ours * 1e6:6.1f}")


if __name__ == "__main__":
    main()
