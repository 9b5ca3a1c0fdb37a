"""The fused kernels against the pure-torch stream, and the threads that run them."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.kernels import openmp
from noiseprop.noise.kernels.philox import standard_normal

pytestmark = pytest.mark.skipif(not kernels.has_numba, reason="numba is missing")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 2**-8}


def problem(dtype, draws, batch, shape, memory_format, first=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(draws * batch, *shape, generator=g).to(dtype)
    if memory_format is not None:
        x = x.contiguous(memory_format=memory_format)
    sigma, mu = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    key = torch.tensor([2**60 + 12345, 7, 3, 1, first])
    eps = standard_normal(key, draws, batch, sigma.numel()).view(x.shape).double()
    return x, sigma, mu, key, eps


def assert_agrees(dtype, draws, batch, shape, memory_format, first):
    x, sigma, mu, key, eps = problem(dtype, draws, batch, shape, memory_format, first)
    for mean in (None, mu):
        y = kernels.add_gaussian_noise(x, sigma, mean, key, draws)
        expected = x.double() + sigma.double() * eps + (0 if mean is None else mean.double())
        assert y.dtype == dtype
        assert y.stride() == x.stride()
        torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=3e-4)
    gradient = kernels.compute_sigma_gradient(x, key, shape, draws)
    assert gradient.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(gradient.double(), (x.double() * eps).sum(0), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((1,), None),
        ((10,), None),
        ((131,), None),
        ((7, 5, 3), None),
        ((7, 5, 3), torch.channels_last),
        ((64, 6, 6), torch.channels_last),
        ((3, 2, 5, 4), torch.channels_last_3d),
    ],
)
def test_kernels_draw_the_stream_in_every_layout(dtype, shape, memory_format):
    assert_agrees(dtype, 1, 13, shape, memory_format, first=0)
    assert_agrees(dtype, 3, 9, shape, memory_format, first=5)


@settings(max_examples=40, deadline=None)
@given(
    draws=st.integers(1, 4),
    batch=st.integers(1, 40),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    first=st.integers(0, 20),
    last=st.booleans(),
)
def test_kernels_draw_the_stream_for_any_shape(draws, batch, shape, first, last):
    memory_format = torch.channels_last if last and len(shape) == 3 else None
    assert_agrees(torch.float32, draws, batch, shape, memory_format, first)


def test_the_polynomials_are_the_least_squares_fits_that_they_are_said_to_be():
    from noiseprop.noise.kernels import numba_noise as compiled

    m, t = np.linspace(1, 2 - 1e-9, 20001), np.linspace(1e-12, 0.25, 20001)
    for x, y, coefficients in (
        (m, -2 * np.log(m / 2) / (m - 2), compiled.LOGARITHM),
        (t, np.sin(np.pi * np.sqrt(t)) / np.sqrt(t), compiled.SINE),
        (t, np.cos(np.pi * np.sqrt(t)), compiled.COSINE),
    ):
        fit = np.polynomial.Chebyshev.fit(x, y, len(coefficients) - 1)(x)
        np.testing.assert_allclose(np.polynomial.polynomial.polyval(x, coefficients), fit, rtol=0, atol=1e-6)
        assert abs(fit - y).max() < 6e-5


def test_a_strided_input_is_taken_in_logical_order():
    x = torch.randn(6, 5, 4).transpose(1, 2)
    key = torch.tensor([1, 0, 0, 0, 0])
    sigma = torch.rand(4, 5)
    torch.testing.assert_close(
        kernels.add_gaussian_noise(x, sigma, None, key, 1),
        kernels.add_gaussian_noise(x.contiguous(), sigma, None, key, 1),
        rtol=0,
        atol=0,
    )


def test_large_batches_sum_the_gradient_in_parts():
    x, _, _, key, eps = problem(torch.float32, 1, 1003, (37,), None)
    torch.testing.assert_close(
        kernels.compute_sigma_gradient(x, key, (37,), 1).double(), (x.double() * eps).sum(0), rtol=1e-5, atol=1e-3
    )


def test_bfloat16_rounds_as_torch_does_and_keeps_not_a_number():
    values = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 3.3895e38, float("inf"), float("-inf"), float("nan")])
    x = values.to(torch.bfloat16).view(1, -1)
    key = torch.tensor([0, 0, 0, 0, 0])
    y = kernels.add_gaussian_noise(x, torch.zeros(8), None, key, 1)
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
    x = torch.zeros(16, 1000, dtype=torch.bfloat16)
    y = kernels.add_gaussian_noise(x, torch.ones(1000), None, key, 1)
    wide = kernels.add_gaussian_noise(x.float(), torch.ones(1000), None, key, 1)
    torch.testing.assert_close(y, wide.to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_not_a_number_comes_out_as_one(dtype):
    x = torch.zeros(3, 20, dtype=dtype)
    x[1, 7] = float("nan")
    key = torch.tensor([0, 0, 0, 0, 0])
    assert kernels.add_gaussian_noise(x, torch.ones(20), None, key, 1).isnan().nonzero().tolist() == [[1, 7]]
    assert kernels.compute_sigma_gradient(x, key, (20,), 1).isnan().nonzero().tolist() == [[7]]


def both(count: int = 1) -> list[torch.Tensor]:
    x, sigma, mu, key, _ = problem(torch.float32, 1, 300, (2100,), None)
    gradient = kernels.compute_sigma_gradient
    return [
        t
        for _ in range(count)
        for t in (kernels.add_gaussian_noise(x, sigma, mu, key, 1), gradient(x, key, (2100,), 1))
    ]


def test_noise_and_gradient_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = both()
        for number in (2, 3, 5):
            torch.set_num_threads(number)
            for a, b in zip(one, both(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_without_openmp_python_threads_do_the_same(monkeypatch):
    expected = both()
    monkeypatch.setattr(openmp, "find_gomp_parallel", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for a, b in zip(expected, both(), strict=True):
        assert torch.equal(a, b)


def test_torch_brings_openmp_on_linux():
    if sys.platform != "linux":
        pytest.skip("other systems' torch may bring another OpenMP library, or none")
    assert openmp.find_gomp_parallel() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's threads in /proc")
def test_the_kernels_start_no_threads_beside_torch():
    script = """
import os, torch
from noiseprop.noise.kernels import dispatch as kernels
torch.set_num_threads(2)
x, key = torch.randn(512, 4096), torch.tensor([1, 0, 0, 0, 0])
(x + 1, x.exp(), x @ x.T)  # torch's own team is there now
kernels.add_gaussian_noise(x[:1], torch.ones(4096), None, key, 1)  # LLVM starts a thread of its own when it compiles
kernels.compute_sigma_gradient(x[:1], key, (4096,), 1)
before = len(os.listdir("/proc/self/task"))
kernels.add_gaussian_noise(x, torch.ones(4096), None, key, 1)
kernels.compute_sigma_gradient(x, key, (4096,), 1)
assert len(os.listdir("/proc/self/task")) == before, (before, os.listdir("/proc/self/task"))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_two_python_threads_at_once():
    expected, results = both(), {}
    workers = [threading.Thread(target=lambda i=i: results.__setitem__(i, both(10))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for result in (results[0], results[1]):
        for a, b in zip(expected * 10, result, strict=True):
            assert torch.equal(a, b)


def test_a_spawned_process_draws_the_same_noise():
    x, sigma, mu, key, _ = problem(torch.float32, 1, 300, (2100,), None)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply_async(kernels.add_gaussian_noise, (x, sigma, mu, key, 1)).get(timeout=120)
    assert torch.equal(there, kernels.add_gaussian_noise(x, sigma, mu, key, 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_runs_serially_instead_of_hanging():
    script = """
import os, sys, torch
from noiseprop.noise.kernels import dispatch as kernels
x, key = torch.zeros(256, 4096), torch.tensor([1, 0, 0, 0, 0])
expected = kernels.add_gaussian_noise(x, torch.ones(4096), None, key, 1).numpy().tobytes()
pid = os.fork()
if pid == 0:
    os._exit(0 if kernels.add_gaussian_noise(x, torch.ones(4096), None, key, 1).numpy().tobytes() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_kernels_come_from_the_cache_on_disk_the_second_time(tmp_path):
    script = """
import torch
from noiseprop.noise.kernels import dispatch as kernels
kernels.add_gaussian_noise(torch.zeros(2, 3), torch.ones(3), None, torch.zeros(5, dtype=torch.int64), 1)
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)
    first = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nbc")}
    assert first
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nbc")} == first


def test_kernels_are_compiled_where_nothing_can_be_written():
    script = """
import torch
from numba.core import caching
from noiseprop.noise.kernels import dispatch as kernels
caching.CompileResultCacheImpl._locator_classes = []  # as for a user without a home in a folder that is read-only
key = torch.zeros(5, dtype=torch.int64)
assert kernels.add_gaussian_noise(torch.zeros(2, 3), torch.ones(3), None, key, 1).unique().numel() == 6
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_without_numba_the_noise_is_the_same_up_to_rounding():
    script = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import torch
from noiseprop import gaussian_noise
from noiseprop.noise.kernels import dispatch as kernels
assert not kernels.has_numba
sigma = torch.full((3,), 0.5, requires_grad=True)
y = gaussian_noise(torch.ones(9, 3), sigma, key=torch.tensor([4]))
y.square().sum().backward()
print(*y.flatten().tolist(), *sigma.grad.tolist())
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, timeout=120, capture_output=True, text=True)
    key = torch.tensor([4, 0, 0, 0, 0])
    y = kernels.add_gaussian_noise(torch.ones(9, 3), torch.full((3,), 0.5), None, key, 1)
    wanted = torch.cat([y.flatten(), kernels.compute_sigma_gradient(2 * y, key, (3,), 1)])
    torch.testing.assert_close(torch.tensor([float(v) for v in run.stdout.split()]), wanted, rtol=1e-4, atol=1e-3)
