"""Compare the time of the corruptions with that of the code that defines them: `python benchmarks/corruptions.py`.

Claim: glass blur of 32 x 32 images is at least 40 times as fast as the reference loop, Hendrycks' generator, which
processes one pixel of one image after another. The other kinds are compared with the definition image by image. Tests
compare the pixels of both for equal random draws; here the draws differ.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from measure import write_figures
from noiseprop.corruptions import KINDS, SEVERITIES, contrast, corrupt, gaussian_noise, impulse_noise
from noiseprop.corruptions.glass_blur import GLASS_BLUR

OURS, THEIRS = 512, 12  # images per repeat
REPEATS = 5

Generator = np.random.RandomState


def reference_glass_blur(image: np.ndarray, severity: int, params: str, rng: Generator) -> np.ndarray:
    """Blur a uint8 image (H, W) or (H, W, 3) by Hendrycks' loop over pixels."""
    sigma, delta, iterations = GLASS_BLUR[params][severity - 1]
    sigmas = (sigma, sigma) if image.ndim == 2 else (sigma, sigma, 0)
    x = np.uint8(gaussian_filter(image / 255.0, sigmas, mode="nearest", truncate=4.0) * 255)
    rows, columns = x.shape[:2]
    for _ in range(iterations):
        for h in range(rows - delta, delta, -1):
            for w in range(columns - delta, delta, -1):
                dx, dy = rng.randint(-delta, delta, size=(2,))
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return np.clip(gaussian_filter(x / 255.0, sigmas, mode="nearest", truncate=4.0), 0, 1)


def reference_gaussian_noise(image: np.ndarray, severity: int, params: str, rng: Generator) -> np.ndarray:
    """Add Gaussian noise to one image, as `gaussian_noise` does."""
    scale = gaussian_noise.GAUSSIAN_SIGMA[params][severity - 1]
    return np.clip(image / 255.0 + rng.normal(size=image.shape, scale=scale), 0, 1)


def reference_impulse_noise(image: np.ndarray, severity: int, params: str, rng: Generator) -> np.ndarray:
    """Add impulse noise to one image, as random_noise of scikit-image does."""
    out = image / 255.0
    replaced = rng.random_sample(image.shape) < impulse_noise.IMPULSE_AMOUNT[params][severity - 1]
    salt = rng.random_sample(image.shape) < 0.5
    out[replaced & salt] = 1
    out[replaced & ~salt] = 0
    return np.clip(out, 0, 1)


def reference_contrast(image: np.ndarray, severity: int, params: str, _rng: Generator) -> np.ndarray:
    """Reduce the contrast of one image, as `contrast` does."""
    x = image / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return np.clip((x - means) * contrast.FACTOR[params][severity - 1] + means, 0, 1)


REFERENCES = {
    "glass_blur": reference_glass_blur,
    "gaussian_noise": reference_gaussian_noise,
    "impulse_noise": reference_impulse_noise,
    "contrast": reference_contrast,
}


def measure_fastest(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the seconds of the fastest run, after one discarded warm-up."""
    run()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_kind(kind: str, channels: int, params: str, severity: int) -> dict[str, float]:
    """Return the microseconds per image of the definition and of noiseprop, on 8-bit pixels, and their ratio."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (OURS, 32, 32, channels), dtype=np.uint8)
    arrays = images[..., 0] if channels == 1 else images
    few = arrays[:THEIRS] if kind == "glass_blur" else arrays
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    reference = REFERENCES[kind]
    theirs = measure_fastest(
        lambda: [np.uint8(reference(image, severity, params, rng) * 255) for image in few], 2
    ) / len(few)
    ours = measure_fastest(lambda: corrupt(batch, kind, severity=severity, params=params, generator=generator)) / OURS
    return {"definition, us an image": theirs * 1e6, "ours, us an image": ours * 1e6, "ratio": theirs / ours}


def main() -> None:
    """Print one line per setting and save all figures."""
    print(f"32 x 32, {OURS} images, {torch.get_num_threads()} threads; microseconds per image")
    figures: dict[str, dict[str, float]] = {}
    for kind in reversed(KINDS):
        sets = ((3, "cifar10"), (1, "cifar10"), (3, "tiny-imagenet"), (1, "mnist"))
        for channels, params in sets if kind == "glass_blur" else sets[:1]:
            for severity in SEVERITIES if kind == "glass_blur" else (3,):
                name = f"{kind}, {channels} channels, {params}, severity {severity}"
                figures[name] = compare_kind(kind, channels, params, severity)
                theirs, ours, ratio = figures[name].values()
                print(f"{name:52} definition {theirs:8.1f}  ours {ours:6.1f}  x{ratio:6.1f}", flush=True)
    worst = min(row["ratio"] for name, row in figures.items() if name.startswith("glass_blur"))
    print(f"slowest glass blur: {worst:.0f} times as fast as the loop (claim: 40)")
    write_figures("corruptions", "Hendrycks' code, image by image, and pixel by pixel for glass blur", figures)


if __name__ == "__main__":
    main()
