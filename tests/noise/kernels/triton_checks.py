"""Checks of the Triton kernels against the definition of the stream, for any device.

`python triton_checks.py` runs them on the CPU in Triton's interpreter, for which TRITON_INTERPRET=1 must be set before
triton is imported; `test_triton_noise.py` runs them on a GPU where there is one.
"""

import itertools
import math
import os
import time

import torch
import triton
import triton.language as tl

from noiseprop import gaussian_noise
from noiseprop.noise.kernels import dispatch, philox, triton_noise

KEYS = [
    (0, 0, 0, 0, 0),
    (-1, 2**32 - 1, 65535, 65535, 2**33 + 5),
    (-(2**63), 3, 7, 2, 11),
    (2**63 - 1, 2**40 + 1, 1, 0, 8),
]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # which rounds to bfloat16 by cutting off
TOLERANCE = {
    torch.float32: 3e-6,
    torch.float64: 3e-6,
    torch.bfloat16: 2**-7 if INTERPRETED else 2**-8,
    torch.float16: 2**-10,
}
CONTIGUOUS = [(9, 5), (8, 40), (3, 4, 5, 6), (2, 3, 2, 4, 5), (5,), (1, 1), (0, 4)]
CHANNELS_LAST = [(9, 4, 3, 3), (4, 16, 4, 4), (2, 3, 2, 4, 5)]


@triton.jit
def write_words_kernel(out, key, size, groups, BLOCK: tl.constexpr):
    """Write the four words of each block to out[draw, group, word, neuron]."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    draw, g = tl.program_id(1) // groups, tl.program_id(1) % groups
    seed, group = tl.load(key), (tl.load(key + 4) >> 3) + g
    start = (tl.load(key + 1) + draw).to(tl.uint32)
    layer = (tl.load(key + 2) + tl.load(key + 3) * 65536).to(tl.uint32)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    words = triton_noise._philox_words(j.to(tl.uint32), group.to(tl.uint32), start, layer, low, high)
    for k in tl.static_range(4):
        tl.store(out + (tl.program_id(1) * 4 + k) * size + j, words[k].to(tl.int64), mask=j < size)


@triton.jit
def locate_kernel(j, neurons, channels, inner, pixels, magic, shift, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Write the neuron and the channel of each position."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    neuron, channel = triton_noise._locate_neurons(tl.load(j + i), inner, pixels, magic, shift, LAST, tl.int32)
    tl.store(neurons + i, neuron)
    tl.store(channels + i, channel)


def check_words(device):
    for key, (draws, batch, neurons) in itertools.product(KEYS, ((1, 3, 40), (3, 17, 33))):
        key, groups = torch.tensor(key), (batch + 6) // 8 + 1
        expected = torch.stack(philox.random_words(key, draws, groups, neurons), dim=2)
        out = torch.zeros(expected.shape, dtype=torch.int64, device=device)
        write_words_kernel[(triton.cdiv(neurons, 32), draws * groups)](out, key.to(device), neurons, groups, 32)
        assert torch.equal(out.cpu(), expected), key


def exact_normals(key, draws, batch, neurons):
    """Return the normals that the words stand for, in float64."""
    groups = (batch + 6) // 8 + 1
    normals = []
    for word in philox.random_words(key, draws, groups, neurons):
        radius = (-2 * (((word >> 12).double() + 0.5) * 2.0**-20).log()).sqrt()
        angle = (((word & 4095).double() + 0.5) * 2.0**-12 - 0.5) * (2 * math.pi)
        normals += [radius * angle.cos(), radius * angle.sin()]
    eps = torch.stack(normals, dim=2).view(draws, groups * 8, neurons)
    first = int(key[4]) % 8
    return eps[:, first : first + batch].reshape(draws * batch, neurons)


def check_normals(device):
    key = torch.tensor([77, 5, 2, 0, 3])
    zeros, ones = torch.zeros(128, 1024, device=device), torch.ones(1024, device=device)
    eps = triton_noise.add_noise_on_gpu(zeros, ones, None, key.to(device), 1)
    error = (eps.cpu().double() - exact_normals(key, 1, 128, 1024)).abs().max().item()
    assert error < 2e-6, error


def levels_of(neurons, dtype):
    """Yield sigmas of every shape that broadcasts to the neurons."""
    yield torch.randn(neurons, dtype=dtype)
    yield torch.randn((), dtype=dtype)
    if len(neurons) > 1:
        yield torch.randn(neurons[0], *[1] * (len(neurons) - 1), dtype=dtype)
        yield torch.randn(1, *neurons[1:], dtype=dtype)
        yield torch.randn(neurons[-1], dtype=dtype)


def assert_near(found, expected, dtype, rows=1):
    found, expected = found.cpu().double(), expected.double()
    if found.numel():
        error = ((found - expected).abs() / (1 + expected.abs()) / rows**0.5).max().item()
        assert error <= TOLERANCE[dtype], (error, dtype)


def check_case(device, shape, memory_format, dtype, draws, key, number):
    x = torch.randn(shape[0] * draws, *shape[1:]).to(dtype).contiguous(memory_format=memory_format)
    key, wide = torch.tensor(key), torch.float64 if dtype == torch.float64 else torch.float32
    eps = exact_normals(key, draws, shape[0], math.prod(shape[1:])).view(x.shape)
    there, key = x.to(device), key.to(device)
    levels = list(levels_of(shape[1:], wide))
    for sigma in (levels[number % len(levels)], levels[(number + 2) % len(levels)]):
        mu = torch.randn_like(sigma) if number % 3 == 0 else None
        y = triton_noise.add_noise_on_gpu(there, sigma.to(device), None if mu is None else mu.to(device), key, draws)
        assert (y.dtype, y.shape, y.stride()) == (dtype, x.shape, x.stride())
        assert_near(y, (x.double() + sigma.double() * eps + (0 if mu is None else mu.double())), dtype)
        gradient = triton_noise.compute_sigma_gradient_on_gpu(there, key, sigma.shape, draws)
        assert (gradient.dtype, gradient.shape) == (wide, sigma.shape)
        assert gradient.is_contiguous()
        expected = (x.double() * eps).sum(0).sum_to_size(sigma.shape)
        assert_near(gradient, expected, wide, rows=max(1, x.numel() // max(1, sigma.numel())))


def check_shapes(device):
    cases = [(shape, torch.contiguous_format) for shape in CONTIGUOUS]
    cases += [(s, torch.channels_last if len(s) == 4 else torch.channels_last_3d) for s in CHANNELS_LAST]
    for number, ((shape, memory_format), dtype) in enumerate(itertools.product(cases, TOLERANCE)):
        if INTERPRETED and dtype in (torch.float64, torch.float16) and number % 3:
            continue  # the interpreter takes its time
        draws, key = (1, 3)[number % 2], KEYS[1 + number % 3]
        check_case(device, shape, memory_format, dtype, draws, key, number)


def check_samples(device):
    """Check that a normal depends on its sample and pass, and not on the batch or on how the grid is split."""
    key = [-5, 40, 3, 2, 0]
    draw = lambda key, draws, batch: triton_noise.add_noise_on_gpu(  # noqa: E731
        torch.zeros(draws * batch, 70, device=device),
        torch.ones(70, device=device),
        None,
        torch.tensor(key, device=device),
        draws,
    )
    whole = draw(key, 1, 21)
    for first, count in ((0, 8), (3, 7), (8, 5), (13, 8)):
        assert torch.equal(draw([*key[:4], first], 1, count), whole[first : first + count])
    several = draw([-5, 38, 3, 2, 5], 4, 6).view(4, 6, 70)  # passes 38 to 41, samples 5 to 10
    assert torch.equal(several[2], whole[5:11])
    limit, triton_noise.GRID_LIMIT = triton_noise.GRID_LIMIT, 2
    try:
        assert torch.equal(draw([-5, 38, 3, 2, 5], 4, 6).view(4, 6, 70), several)
        assert torch.equal(draw(key, 1, 21), whole)
    finally:
        triton_noise.GRID_LIMIT = limit


def check_special_values(device):
    x = torch.zeros(3, 20, device=device)
    x[1, 7], x[2, 9], x[0, 3] = float("nan"), float("inf"), -0.0
    key = torch.tensor(KEYS[2], device=device)
    y = triton_noise.add_noise_on_gpu(x, torch.zeros(20, device=device), None, key, 1)
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
    gradient = triton_noise.compute_sigma_gradient_on_gpu(x, key, (20,), 1)
    assert gradient.isfinite().logical_not().nonzero().flatten().tolist() == [7, 9]
    strided = torch.randn(6, 5, 4, device=device).transpose(1, 2)
    sigma = torch.rand(4, 5, device=device)
    first = triton_noise.add_noise_on_gpu(strided, sigma, None, key, 1)
    gradient = triton_noise.compute_sigma_gradient_on_gpu(strided, key, (4, 5), 1)
    assert torch.equal(gradient, triton_noise.compute_sigma_gradient_on_gpu(strided.contiguous(), key, (4, 5), 1))
    assert torch.equal(first, triton_noise.add_noise_on_gpu(strided.contiguous(), sigma, None, key, 1))


def check_positions(device):
    """Check the division by a multiplication, up to the last position that 32 bits hold."""
    generator = torch.Generator().manual_seed(0)
    for inner in (1, 2, 3, 7, 49, 3136, 2**20 - 1, 2**27 + 1):
        for last in (False, True):
            pixels = max(1, 2**30 // inner) if last else inner
            j = torch.randint(2**31 - 1, (256,), generator=generator, dtype=torch.int32)
            j[:4] = torch.tensor([0, inner - 1, inner, 2**31 - 1])
            shape = (1, inner, 1, pixels) if last else (1, 3, 1, inner)
            x = torch.empty(shape, device="meta")
            _, length, pixels, magic, shift = triton_noise._measure_neurons(x, channels_last=last)
            assert length == inner
            neurons, channels = (torch.zeros(256, dtype=torch.int32, device=device) for _ in range(2))
            locate_kernel[(2,)](j.to(device), neurons, channels, inner, pixels, magic, shift, last, 128)
            wide = j.long()
            channel = wide % inner if last else wide // inner
            neuron = channel * pixels + wide // inner if last else wide
            assert torch.equal(channels.cpu().long(), channel), inner
            assert torch.equal(neurons.cpu(), neuron.int()), inner


def check_wide_positions(device):
    """Check that 64-bit positions give the same numbers as 32-bit ones."""
    narrow = triton_noise._choose_types
    x = torch.randn(9, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)
    sigma, key = torch.rand(3, 1, 1, device=device), torch.tensor(KEYS[2], device=device)
    run = lambda: (  # noqa: E731
        triton_noise.add_noise_on_gpu(x, sigma, sigma, key, 1),
        triton_noise.compute_sigma_gradient_on_gpu(x, key, sigma.shape, 1),
    )
    assert narrow(x)[1] == tl.int32
    assert narrow(torch.empty(1, 2**31, device="meta"))[1] == tl.int64
    expected = run()
    triton_noise._choose_types = lambda x: (narrow(x)[0], tl.int64)
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        triton_noise._choose_types = narrow


def check_autograd(device):
    """Check the public operator's gradients, also in a checkpointed block, against the definition."""
    x = torch.randn(9, 3, 4, 5, device=device, requires_grad=True)
    key = torch.tensor(KEYS[2], device=device)
    for shape in ((3, 4, 5), (3, 1, 1), (), (5,)):
        sigma, mu = (torch.rand(shape, device=device, requires_grad=True) for _ in range(2))
        weight = torch.randn(x.shape, device=device)
        eps = philox.standard_normal(key, 1, 9, 60).view(x.shape)

        def function(x, sigma, mu, weight=weight):
            return (gaussian_noise(x, sigma, mu=mu, key=key) * weight).sum()

        expected = torch.autograd.grad(((x + mu + sigma * eps) * weight).sum(), (x, sigma, mu))
        plain = torch.autograd.grad(function(x, sigma, mu), (x, sigma, mu))
        again = torch.utils.checkpoint.checkpoint(function, x, sigma, mu, use_reentrant=False)
        for a, b, c in zip(plain, torch.autograd.grad(again, (x, sigma, mu)), expected, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-4)


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and name != "check_case"
}


if __name__ == "__main__":
    dispatch.select_backend = lambda x: "triton"
    torch.manual_seed(0)
    for name, check in CHECKS.items():
        began = time.process_time()
        check("cpu")
        print(f"{name}: {time.process_time() - began:.1f} s", flush=True)
