import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corruptions import reference

from noiseprop.corruptions import KINDS, PARAMS, SEVERITIES, corrupt, corruption_seed, glass_blur, skip
from noiseprop.corruptions import gaussian_noise as gaussian
from noiseprop.corruptions import impulse_noise as impulse
from noiseprop.data import load
from noiseprop.errors import InputError


def pictures(batch, channels, height, width, seed=0):
    """8-bit images with flat black and white parts, as digits have, smooth ramps and noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    images[0, : height // 2] = 0
    images[-1, :, : width // 2] = 255
    if batch > 2:
        images[1] = np.linspace(0, 255, height * width * channels).reshape(height, width, channels).astype(np.uint8)
    return images


def as_batch(images, dtype=torch.float32):
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 255


def stored(results):
    """Results (B, H, W, C) in [0, 1] as the definition stores them: 8 bits, truncated; (B, C, H, W)."""
    return torch.from_numpy(np.uint8(results * 255)).permute(0, 3, 1, 2)


def slow(images, kind, severity, params, seed):
    """Apply the reference to every image, with the draws that `corrupt` makes from a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    arrays = images[..., 0] if images.shape[-1] == 1 else images
    c = reference.PARAMETERS[params][kind][severity - 1]
    if kind == "gaussian_noise":
        draws = gaussian.draw_gaussian(arrays.shape, generator)
        results = [reference.gaussian_noise(image, c, draws[i]) for i, image in enumerate(arrays)]
    elif kind == "impulse_noise":
        draws = impulse.draw_impulses(arrays.shape, generator)
        results = [reference.impulse_noise(image, c, draws[:, i]) for i, image in enumerate(arrays)]
    elif kind == "contrast":
        results = [reference.contrast(image, c) for image in arrays]
    else:
        draws = glass_blur.draw_offsets(arrays.shape, glass_blur.GlassBlur(*c), generator)
        first = c[1] + 1

        def offsets(i):
            return lambda iteration, h, w: draws[iteration, i, h - first, w - first]

        results = [reference.glass_blur(image, c, offsets(i)) for i, image in enumerate(arrays)]
    return np.stack(results).reshape(images.shape)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28)])
def test_equals_the_slow_reference_to_the_bit(kind, params, severity, channels, height, width):
    images = pictures(4, channels, height, width)
    expected = slow(images, kind, severity, params, seed=7)
    generator = torch.Generator().manual_seed(7)
    ours = corrupt(as_batch(images), kind, severity=severity, params=params, generator=generator)
    assert ours.shape == (4, channels, height, width)
    assert ours.dtype == torch.float32
    if params == "mnist":  # not stored in 8 bits
        exact = torch.from_numpy(expected).permute(0, 3, 1, 2)
        generator = torch.Generator().manual_seed(7)
        double = as_batch(images, torch.float64)
        assert torch.equal(corrupt(double, kind, severity=severity, params=params, generator=generator), exact)
        assert torch.equal(ours, exact.float())
    else:
        assert torch.equal(ours, stored(expected).float() / 255)
    assert not torch.equal(ours, as_batch(images))


@pytest.mark.parametrize("kind", KINDS)
def test_real_digits_equal_the_slow_reference(kind):
    """Digits are mostly black, where truncation decides the most."""
    images = load("mnist-5k").images[::500].permute(0, 2, 3, 1).numpy()
    for severity in SEVERITIES:
        expected = slow(images, kind, severity, "cifar10", seed=severity)
        generator = torch.Generator().manual_seed(severity)
        ours = corrupt(as_batch(images), kind, severity=severity, params="cifar10", generator=generator)
        assert torch.equal((ours * 255).round().byte(), stored(expected))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    severity=st.sampled_from(SEVERITIES),
    params=st.sampled_from(["cifar10", "tiny-imagenet"]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_reference(batch, channels, height, width, severity, params, kind, seed):
    images = pictures(batch, channels, height, width, seed)
    expected = slow(images, kind, severity, params, seed)
    ours = corrupt(
        as_batch(images), kind, severity=severity, params=params, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(ours, stored(expected).float() / 255)


@pytest.mark.parametrize("delta", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_exchange_alone_follows_the_order(delta, channels):
    """Without the filter, on pixels that are all different: every exchange counts."""
    side = 15
    images = np.arange(side * side, dtype=np.uint8).reshape(1, side, side, 1) + np.zeros(
        (6, 1, 1, channels), dtype=np.uint8
    )
    arrays = images[..., 0] if channels == 1 else images
    glass = glass_blur.GlassBlur(0.05, delta, 3)
    draws = glass_blur.draw_offsets(arrays.shape, glass, torch.Generator().manual_seed(delta))
    ours = glass_blur.apply_glass_blur(arrays / 255.0, draws, glass)
    for i, image in enumerate(arrays):
        expected = reference.glass_blur(
            image, glass, lambda iteration, h, w, i=i: draws[iteration, i, h - delta - 1, w - delta - 1]
        )
        np.testing.assert_array_equal(ours[i], expected)
    exchanged = np.sort((ours * 255).round().reshape(6, -1), axis=1)
    kept = np.sort(arrays.reshape(6, -1), axis=1)
    assert np.array_equal(exchanged, kept) == (channels == 1)  # an exchange keeps every pixel, a copy loses some


def test_rgb_is_a_copy_and_grey_an_exchange():
    """One row of draws by hand: the pixel drawn last takes its left neighbour's value, which keeps or loses its own."""
    image = np.arange(16, dtype=np.float64).reshape(1, 4, 4) / 255
    draws = np.zeros((1, 1, 2, 2, 2), dtype=np.int8)
    draws[0, 0, 0, 0] = (-1, 0)  # (dx, dy) of h = w = 2
    glass = glass_blur.GlassBlur(0.05, 1, 1)
    grey = glass_blur.apply_glass_blur(image, draws, glass)[0] * 255
    rgb = glass_blur.apply_glass_blur(np.repeat(image[..., None], 3, axis=3), draws, glass)[0, :, :, 1] * 255
    assert (grey[2, 1], grey[2, 2]) == (10, 9)
    assert (rgb[2, 1], rgb[2, 2]) == (9, 9)


def test_the_filter_is_a_normalised_gaussian_with_nearest_border():
    """Compare with the formula of the filter, independent of SciPy."""
    rng = np.random.default_rng(0)
    x = rng.random((1, 12, 12))
    sigma, radius = 0.9, int(4 * 0.9 + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    padded = np.pad(x[0], radius, mode="edge")
    expected = sum(a * b * padded[i : i + 12, j : j + 12] for i, a in enumerate(taps) for j, b in enumerate(taps))
    still = np.zeros((1, 1, 8, 8, 2), dtype=np.int8)
    glass = glass_blur.GlassBlur(sigma, 2, 1)
    once = np.floor(expected * 255 + 1e-9) / 255
    padded = np.pad(once, radius, mode="edge")
    twice = sum(a * b * padded[i : i + 12, j : j + 12] for i, a in enumerate(taps) for j, b in enumerate(taps))
    np.testing.assert_allclose(glass_blur.apply_glass_blur(x, still, glass)[0], twice, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_untouched_pixels_keep_their_value_in_every_dtype(dtype):
    """Impulse noise leaves most pixels alone; truncating must not lower them by one."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = as_batch(images, dtype)
    out = corrupt(x, "impulse_noise", severity=1, params="cifar10", generator=torch.Generator().manual_seed(0))
    touched = out != x
    assert 0 < touched.sum() < 12
    assert set(out[touched].tolist()) <= {0.0, 1.0}
    assert out.dtype == dtype


def test_pixels_made_by_a_product_are_on_the_grid_too():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    divided, product = as_batch(images), torch.from_numpy(images).permute(0, 3, 1, 2).float() * torch.tensor(1 / 255)
    assert not torch.equal(divided, product)
    results = [
        corrupt(x, "contrast", severity=2, params="cifar10", generator=torch.Generator()) for x in (divided, product)
    ]
    assert torch.equal(*results)


def test_draws_have_the_stated_law():
    x = torch.full((64, 3, 32, 32), 0.5)
    generator = torch.Generator().manual_seed(3)
    noise = corrupt(x, "gaussian_noise", severity=5, params="mnist", generator=generator) - 0.5
    n = noise.numel()
    # clipping at ±0.5 = 1.316 sigma folds the tails onto the border: E[min(|z|, a)^2] for a = 0.5 / 0.38
    a = 0.5 / 0.38
    tail = torch.special.ndtr(torch.tensor(-a)).item()
    density = np.exp(-a * a / 2) / np.sqrt(2 * np.pi)
    variance = 0.38**2 * ((1 - 2 * tail) - 2 * a * density + 2 * a * a * tail)
    assert noise.mean().item() == pytest.approx(0, abs=4 * np.sqrt(variance / n))
    assert noise.var().item() == pytest.approx(variance, rel=4 * np.sqrt(2 / n))
    impulse = corrupt(x, "impulse_noise", severity=5, params="mnist", generator=generator)
    for value in (0.0, 1.0):
        share = (impulse == value).double().mean().item()
        assert share == pytest.approx(0.135, abs=4 * np.sqrt(0.135 * 0.865 / n))
    offsets = glass_blur.draw_offsets((64, 32, 32), glass_blur.GlassBlur(1.0, 2, 3), generator)
    assert set(np.unique(offsets)) == {-2, -1, 0, 1}
    assert offsets.mean() == pytest.approx(-0.5, abs=4 * np.sqrt(1.25 / offsets.size))


def test_seeds_are_stated_and_all_different():
    seeds = {corruption_seed(d, k, s) for d in ("mnist", "cifar10", "tiny-imagenet") for k in KINDS for s in SEVERITIES}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert corruption_seed("mnist", "glass_blur", 3) == 915566708064346822


def test_the_same_seed_gives_the_same_images_and_the_input_stays():
    x = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    first, second = (
        corrupt(x, "glass_blur", severity=5, params="cifar10", generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    part = corrupt(x[:256], "glass_blur", severity=5, params="cifar10", generator=torch.Generator().manual_seed(1))
    assert torch.equal(part, first[:256])
    assert torch.equal(x, before)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_after_skipped_ones_get_their_own_draws(kind, channels):
    x, options = torch.rand(300, channels, 12, 12, generator=torch.Generator().manual_seed(0)), {"severity": 5}
    options |= {"params": "tiny-imagenet"}
    whole = corrupt(x, kind, **options, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    skip((256, channels, 12, 12), kind, **options, generator=generator)
    assert torch.equal(corrupt(x[256:], kind, **options, generator=generator), whole[256:])
    again = corrupt(x[256:], kind, **options, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, whole[256:]) == (kind == "contrast")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"severity": 0}, "severity is 0"),
        ({"severity": 6}, "severity is 6"),
        ({"severity": 2.5}, "severity is 2.5"),
        ({"severity": True}, "severity is True"),
        ({"kind": "fog"}, "unknown kind 'fog'"),
        ({"params": "imagenet"}, "unknown params 'imagenet'"),
        ({"x": torch.full((1, 1, 4, 4), 1.01)}, "from 1.01 to 1.01"),
        ({"x": torch.full((1, 1, 4, 4), -0.01)}, "from -0.01"),
        ({"x": torch.full((1, 1, 4, 4), float("nan"))}, "nan"),
        ({"x": torch.zeros(1, 4, 4)}, "shape"),
        ({"x": torch.zeros(0, 1, 4, 4)}, "shape"),
        ({"x": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, "uint8"),
    ],
)
def test_bad_input_is_one_clear_sentence(change, says):
    call = {"x": torch.zeros(1, 1, 4, 4), "kind": "contrast", "severity": 1, "params": "cifar10", **change}
    with pytest.raises(InputError, match=says):
        corrupt(call.pop("x"), call.pop("kind"), generator=torch.Generator(), **call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_off_by_rounding_are_clamped(kind, dtype):
    x = (torch.arange(2 * 3 * 32 * 32) % 256).view(2, 3, 32, 32).div(255).to(dtype)
    rounding = torch.finfo(dtype).eps
    off = torch.where(x == 1, 1 + 4 * rounding, torch.where(x == 0, -4 * rounding, x)).to(dtype)
    assert (off.min() < 0) & (off.max() > 1)
    options = {"severity": 3, "params": "mnist"}
    expected = corrupt(x, kind, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(corrupt(off, kind, generator=torch.Generator().manual_seed(0), **options), expected)


def test_pixels_further_off_are_shown_with_enough_digits():
    x = torch.full((1, 3, 32, 32), 1.00001)
    with pytest.raises(InputError, match=r"from 1\.00001 to 1\.00001, expected \[0, 1\].*clamp"):
        corrupt(x, "contrast", severity=1, params="mnist", generator=torch.Generator())
