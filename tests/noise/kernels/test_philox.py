"""The stream: known answers, what a normal depends on, and its quality."""

import numpy as np
import pytest
import torch
from scipy import stats

from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.kernels.philox import philox_words, random_words, standard_normal

BACKENDS = ["torch", pytest.param("kernel", marks=pytest.mark.skipif(not kernels.has_numba, reason="numba is missing"))]


def draw(backend: str, key: list[int], draws: int, batch: int, neurons: int) -> torch.Tensor:
    tensor = torch.tensor(key)
    if backend == "torch":
        return standard_normal(tensor, draws, batch, neurons)
    return kernels.add_gaussian_noise(torch.zeros(draws * batch, neurons), torch.ones(neurons), None, tensor, draws)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    tensors = [torch.tensor(v) for v in (*counter, *key)]
    assert [int(word) for word in philox_words(*tensors)] == words


@pytest.mark.parametrize("backend", BACKENDS)
def test_normals_are_as_exact_as_documented(backend):
    key = [77, 5, 2, 0, 0]
    words = random_words(torch.tensor(key), 1, 64, 4096)
    radius = [(-2 * (((word >> 12).double() + 0.5) * 2.0**-20).log()).sqrt() for word in words]
    angle = [(((word & 4095).double() + 0.5) * 2.0**-12 - 0.5) * (2 * np.pi) for word in words]
    exact = [r * f(a) for r, a in zip(radius, angle, strict=True) for f in (torch.cos, torch.sin)]
    error = (draw(backend, key, 1, 512, 4096).double() - torch.stack(exact, dim=2).view(512, 4096)).abs().max()
    assert 1e-7 < error < {"torch": 1e-6, "kernel": 5e-5}[backend]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_normal_depends_on_its_sample_and_pass_not_on_who_draws_it(backend):
    key = [-5, 40, 3, 2, 0]
    whole = draw(backend, key, 1, 21, 70)
    for first, count in ((0, 8), (3, 7), (8, 5), (13, 8)):
        torch.testing.assert_close(
            draw(backend, [*key[:4], first], 1, count, 70), whole[first : first + count], rtol=0, atol=0
        )
    several = draw(backend, [-5, 38, 3, 2, 5], 4, 6, 70).view(4, 6, 70)  # passes 38 to 41, samples 5 to 10
    torch.testing.assert_close(several[2], whole[5:11], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", range(5))
def test_every_number_of_the_key_changes_every_sample(backend, place):
    key = [11, 22, 33, 44, 8]
    other = key.copy()
    other[place] += 8  # for the first sample: the next block of eight
    same = draw(backend, key, 1, 8, 64) == draw(backend, other, 1, 8, 64)
    assert same.sum() <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds_use_all_64_bits(backend):
    a, b = draw(backend, [1, 0, 0, 0, 0], 1, 8, 8), draw(backend, [1 + 2**40, 0, 0, 0, 0], 1, 8, 8)
    assert not (a == b).any()
    assert torch.isfinite(draw(backend, [-(2**63), 2**32 - 1, 65535, 65535, 2**33], 2, 3, 5)).all()


def moments_within(z: np.ndarray, errors: float = 4.5) -> None:
    """Raw moments 1 to 6 against 0, 1, 0, 3, 0, 15, within so many standard errors."""
    for order, expected in zip(range(1, 7), (0, 1, 0, 3, 0, 15), strict=True):
        variance = np.prod(np.arange(2 * order - 1, 0, -2, dtype=float)) - expected**2
        error = np.sqrt(variance / z.size)
        assert abs((z**order).mean() - expected) < errors * error, order


@pytest.fixture(scope="module")
def ten_million() -> np.ndarray:
    backend = "kernel" if kernels.has_numba else "torch"
    return draw(backend, [2021, 1, 2, 3, 0], 1, 1000, 10_000).numpy().astype(np.float64)


def test_moments_to_order_six(ten_million):
    moments_within(ten_million.ravel())


def test_tails_to_four_and_a_half_sigma(ten_million):
    for bound in (2, 3, 4, 4.5):
        for tail in (ten_million > bound, ten_million < -bound):
            expected = stats.norm.sf(bound) * ten_million.size
            assert abs(tail.sum() - expected) < 4.5 * np.sqrt(expected), bound


def test_kolmogorov_smirnov_and_anderson_darling(ten_million):
    z = np.sort(ten_million.ravel())
    n = z.size
    assert stats.kstest(z, "norm").pvalue > 1e-4
    i = np.arange(1, n + 1)
    a2 = -n - ((2 * i - 1) * (stats.norm.logcdf(z) + stats.norm.logsf(z[::-1]))).sum() / n
    assert a2 < 8.0  # the upper 1e-4 point of the statistic for a fully known normal is about 8


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 9, 64])
def test_neighbouring_neurons_and_samples_are_uncorrelated(ten_million, lag):
    z = ten_million[:, :1000]
    for a, b in ((z[:, lag:], z[:, :-lag]), (z[lag:], z[:-lag])):
        for f in (lambda v: v, lambda v: v**2 - 1, np.abs):
            fa, fb = f(a) - f(a).mean(), f(b) - f(b).mean()
            r = (fa * fb).mean() / (fa.std() * fb.std())
            assert abs(r) < 4.5 / np.sqrt(a.size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adjacent_keys_are_uncorrelated(backend):
    """Seeds, passes, layers and calls next to each other and two apart, by their normals and by their sizes."""
    base = [77, 5, 6, 7, 0]
    keys = [base] + [[n + step * (i == place) for i, n in enumerate(base)] for place in range(4) for step in (1, 2)]
    z = torch.stack([draw(backend, key, 1, 64, 2000) for key in keys]).flatten(1).double()
    for f in (z, z.square(), z.abs()):
        correlation = torch.corrcoef(f) - torch.eye(len(keys))
        assert correlation.abs().max() < 4.5 / z.shape[1] ** 0.5


@pytest.mark.skipif(not kernels.has_numba, reason="numba is missing")
@pytest.mark.parametrize(
    "key",
    [
        [-1, -1, 0, 0, 0],
        [2**63 - 1, 2**32 - 1, 65535, 65535, 2**35 + 3],
        [-(2**63), 2**40, 70000, 3, 2**40 + 5],
        [5, 2**32 + 7, 1, 1, 7],
    ],
)
def test_both_paths_wrap_around_alike(key):
    here, there = (draw(backend, key, 3, 5, 17) for backend in ("torch", "kernel"))
    torch.testing.assert_close(here, there, rtol=0, atol=3e-4)
