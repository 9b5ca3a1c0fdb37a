"""Noise in one pass over memory on a GPU: the stream of `noiseprop.noise.kernels.philox`, by Triton.

A program draws one Philox block for each of `BLOCK` neurons, which gives the eight samples of a group their normals.
Nothing of x's size is written except y, and the key is read on the device. The backward kernel draws the normals again
and sums ``grad * eps`` over a chunk of groups, one after another; torch then sums the chunks. No kernel uses atomic
operations, and the order of every sum depends on the shapes and the first sample alone.

A thread keeps the four neighbouring neurons of its 16-byte loads in registers from the counter to the store. Tests
compile every variant for two architectures and check this: a rewrite that looks harmless can send each normal through
shared memory.
"""
# triton types the arguments of its kernels itself:
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from noiseprop.noise.kernels.memory_layout import list_shared_axes, make_dense, noise_dtype

PER_LAYER, PER_CHANNEL, PER_NEURON, ABSENT = 0, 1, 2, 3  # how sigma and mu are stored
GRID_LIMIT = 65_535  # programs along the second and third axis
GRADIENT_PROGRAMS = 2048  # enough to fill a GPU; more would only enlarge the partial sums
_NOISE_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _multiply_wide(a, b: tl.constexpr):
    """Return both halves of a product of 32 by 32 bits."""
    product = a.to(tl.uint64) * tl.full((), b, tl.uint64)
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _philox_words(c0, c1, c2, c3, k0, k1):
    """Return four words of 32 random bits from a counter and a key: Philox4x32-7."""
    for _ in tl.static_range(7):
        high0, low0 = _multiply_wide(c0, 0xD2511F53)
        high1, low1 = _multiply_wide(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += tl.full((), 0x9E3779B9, tl.uint32)
        k1 += tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _transform_to_normals(word):
    """Return two standard normals from 32 random bits, by polynomials that are within 2e-6 of Box and Muller.

    -2 log(u) = -2 log(2) exponent + f q(f) for u = (1 + f) 2**exponent, exact near u = 1, where the radius is 0;
    sin(pi v) = v s(v^2) and -cos(pi v) = c(v^2) for v in (-1/2, 1/2), from the lower 11 bits of the angle. Its upper
    bit turns it by half a circle, which changes both signs. The coefficients are minimax fits, rounded to float32.
    """
    bits = ((word & 0xFFFFF000) | 0x800).to(tl.float32).to(tl.int32, bitcast=True)  # of 2**32 u, for the uniform u
    exponent = (bits - 0x4F3504F3) & -0x800000  # 0 where u is in [sqrt(1/2), 1), -2**23 where it is half of that, ...
    f = (bits - exponent).to(tl.float32, bitcast=True) * 2.3283064365386963e-10 - 1.0
    q = -0.2424047887325287 * f + 0.37861472368240356
    q = q * f + -0.41031140089035034
    q = q * f + 0.4974874258041382
    q = q * f + -0.6662212610244751
    q = q * f + 1.0000457763671875
    q = q * f + -2.00000262260437
    radius = tl.sqrt(exponent.to(tl.float32) * -1.6525916588782434e-07 + f * q)
    v = (word & 2047).to(tl.int32).to(tl.float32) * 0.00048828125 + -0.499755859375
    t = v * v
    sine = 0.0772201269865036 * t + -0.5980451703071594
    sine = sine * t + 2.5500314235687256
    sine = sine * t + -5.1677069664001465
    sine = (sine * t + 3.141592502593994) * v
    cosine = -0.2196968048810959 * t + 1.3318802118301392
    cosine = cosine * t + -4.058412075042725
    cosine = cosine * t + 4.934792995452881
    cosine = cosine * t + -0.9999999403953552
    signed = (radius.to(tl.uint32, bitcast=True) ^ ((word << 20) & 0x80000000)).to(tl.float32, bitcast=True)
    return signed * sine, signed * cosine


@triton.jit
def _draw_block(key, neuron, group, draw):
    """Return the normals of eight neighbouring samples for each neuron: (BLOCK, 8)."""
    seed = tl.load(key)
    start = (tl.load(key + 1) + draw).to(tl.uint32)
    layer = (tl.load(key + 2) + tl.load(key + 3) * 65536).to(tl.uint32)
    w0, w1, w2, w3 = _philox_words(
        neuron.to(tl.uint32), group.to(tl.uint32), start, layer, seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    )
    # pairs, since the compiler keeps a thread's values in its registers only behind a single join
    pairs = tl.join(w0.to(tl.uint64) | (w1.to(tl.uint64) << 32), w2.to(tl.uint64) | (w3.to(tl.uint64) << 32))
    words = tl.reshape(tl.join(pairs.to(tl.uint32), (pairs >> 32).to(tl.uint32)), (neuron.shape[0], 4))
    even, odd = _transform_to_normals(words)
    return tl.reshape(tl.join(even, odd), (neuron.shape[0], 8))


@triton.jit
def _divide(n, divisor, magic, shift, INDEX: tl.constexpr):
    """Return n // divisor by one multiplication (Granlund and Montgomery, 1994), where positions have 32 bits."""
    if tl.int32 == INDEX:
        unsigned = n.to(tl.uint32)
        quotient = ((tl.umulhi(unsigned, magic.to(tl.uint32)) + unsigned) >> shift.to(tl.uint32)).to(tl.int32)
    else:
        quotient = n // divisor
    return quotient


@triton.jit
def _locate_neurons(j, inner, pixels, magic, shift, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr):
    """Return the numbers of the neurons and of their channels at positions of a sample's memory.

    inner is the length of the last axis in memory: the channels, or else the pixels of a channel.
    """
    outer = _divide(j, inner, magic, shift, INDEX)
    if CHANNELS_LAST:
        channel = j - outer * inner
        neuron = channel * pixels + outer
    else:
        channel, neuron = outer, j
    return neuron, channel


@triton.jit
def _load_level(address, neuron, channel, mask, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """Load sigma or mu: per layer (0), channel (1) or neuron (2), or zeros for an absent mu (3)."""
    if KIND == 3:
        level = tl.zeros((), DTYPE)
    elif KIND == 0:
        level = tl.load(address).to(DTYPE)
    elif KIND == 1:
        level = tl.load(address + channel, mask=mask, other=0).to(DTYPE)[:, None]
    else:
        level = tl.load(address + neuron, mask=mask, other=0).to(DTYPE)[:, None]
    return level


@triton.jit
def _locate_rows(j, sample, batch, size, INDEX: tl.constexpr):
    """Return offsets from the first of eight samples to positions j, and which of them exist: (BLOCK, 8)."""
    lane = tl.arange(0, 8)
    present = (sample + lane).to(tl.uint32) < batch.to(tl.uint32)  # numbers below 0 become large
    return (lane.to(INDEX) * size)[None, :] + j[:, None], present[None, :] & (j < size)[:, None]


@triton.jit(
    do_not_specialize=["batch", "magic", "shift", "first_group", "first_draw"], do_not_specialize_on_alignment=["key"]
)
def add_noise_kernel(
    y,
    x,
    sigma,
    mu,
    key,
    batch,
    size,
    inner,
    pixels,
    magic,
    shift,
    first_group,
    first_draw,
    SIGMA_KIND: tl.constexpr,
    MU_KIND: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write ``y = x + mu + sigma * eps`` for `BLOCK` neurons of one group of eight samples."""
    j = tl.max_contiguous(tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK), 4)
    g, draw = first_group + tl.program_id(1), first_draw + tl.program_id(2)
    first = tl.load(key + 4)
    sample = g * 8 - (first & 7).to(tl.int32)  # of lane 0, within this draw
    neuron, channel = _locate_neurons(j, inner, pixels, magic, shift, CHANNELS_LAST, INDEX)
    level = _load_level(sigma, neuron, channel, j < size, SIGMA_KIND, DTYPE)
    mean = _load_level(mu, neuron, channel, j < size, MU_KIND, DTYPE)
    eps = _draw_block(key, neuron, (first >> 3) + g, draw).to(DTYPE)
    offsets, mask = _locate_rows(j, sample, batch, size, INDEX)
    start = (draw.to(tl.int64) * batch + sample) * size
    value = tl.load(x + start + offsets, mask=mask, other=0).to(DTYPE) + (mean + level * eps)
    tl.store(y + start + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["draws", "batch", "magic", "shift", "groups_per_chunk"], do_not_specialize_on_alignment=["key"]
)
def sum_gradient_kernel(
    parts,
    grad,
    key,
    draws,
    batch,
    size,
    inner,
    pixels,
    magic,
    shift,
    groups_per_chunk,
    CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sum of ``grad * eps`` over a chunk of groups, one after another, to parts[chunk, neuron]."""
    j = tl.max_contiguous(tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK), 4)
    chunk = tl.program_id(1)
    neuron, _ = _locate_neurons(j, inner, pixels, magic, shift, CHANNELS_LAST, INDEX)
    first = tl.load(key + 4)
    skipped = (first & 7).to(tl.int32)
    groups_per_draw = (skipped + batch + 7) // 8
    begin = chunk * groups_per_chunk
    draw, g = begin // groups_per_draw, begin % groups_per_draw
    total = tl.zeros((BLOCK,), DTYPE)
    for _ in range(begin, tl.minimum(begin + groups_per_chunk, draws * groups_per_draw)):
        eps = _draw_block(key, neuron, (first >> 3) + g, draw).to(DTYPE)
        offsets, mask = _locate_rows(j, g * 8 - skipped, batch, size, INDEX)
        start = (draw.to(tl.int64) * batch + g * 8 - skipped) * size
        total += tl.sum(tl.load(grad + start + offsets, mask=mask, other=0).to(DTYPE) * eps, axis=1)
        g += 1
        draw = tl.where(g == groups_per_draw, draw + 1, draw)
        g = tl.where(g == groups_per_draw, 0, g)
    tl.store(parts + chunk.to(tl.int64) * size + neuron, total, mask=j < size)


def add_noise_on_gpu(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int) -> Tensor:
    """Return ``x + mu + sigma * eps`` in x's memory format, in a new tensor."""
    x, channels_last = make_dense(x)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    batch, size, block = x.shape[0] // draws, math.prod(x.shape[1:]), _choose_block(x)
    level, level_kind = _arrange_level(sigma, x)
    mean, mean_kind = (level, ABSENT) if mu is None else _arrange_level(mu, x)
    groups, measures, types = _count_groups(batch), _measure_neurons(x, channels_last), _choose_types(x)
    for group, draw in itertools.product(range(0, groups, GRID_LIMIT), range(0, draws, GRID_LIMIT)):
        _launch_kernel(
            add_noise_kernel,
            (triton.cdiv(size, block), min(groups - group, GRID_LIMIT), min(draws - draw, GRID_LIMIT)),
            (y, x, level, mean, key, batch, *measures, group, draw),
            (level_kind, mean_kind, channels_last, *types, block),
        )
    return y


def compute_sigma_gradient_on_gpu(grad: Tensor, key: Tensor, shape: Sequence[int], draws: int) -> Tensor:
    """Return Eq. 3, ``grad * eps`` summed over the rows and the axes that a sigma of this shape is shared over."""
    grad, channels_last = make_dense(grad)
    neurons, dtype = grad.shape[1:], noise_dtype(grad)
    if grad.numel() == 0:
        return grad.new_zeros(tuple(shape), dtype=dtype)
    batch, size, block = grad.shape[0] // draws, math.prod(neurons), _choose_block(grad)
    tiles, groups = triton.cdiv(size, block), draws * _count_groups(batch)
    groups_per_chunk = triton.cdiv(groups, min(groups, triton.cdiv(GRADIENT_PROGRAMS, tiles)))
    chunks = triton.cdiv(groups, groups_per_chunk)
    parts = grad.new_empty((chunks, *neurons), dtype=dtype)
    _launch_kernel(
        sum_gradient_kernel,
        (tiles, chunks),
        (parts, grad, key, draws, batch, *_measure_neurons(grad, channels_last), groups_per_chunk),
        (channels_last, *_choose_types(grad), block),
    )
    shared = list_shared_axes(neurons, shape)
    if chunks == 1 and not shared:
        return parts.view(tuple(shape))
    return parts.sum((0, *(axis + 1 for axis in shared))).view(tuple(shape))


def _arrange_level(values: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """Return sigma or mu as contiguous memory, and how a kernel finds a neuron's value in it."""
    neurons = x.shape[1:]
    if values.numel() == 1:
        return values, PER_LAYER
    if len(neurons) > 1 and values.shape == (neurons[0], *[1] * (len(neurons) - 1)):
        return values.contiguous(), PER_CHANNEL
    return values.expand(neurons).contiguous(), PER_NEURON


def _measure_neurons(x: Tensor, channels_last: bool) -> tuple[int, int, int, int, int]:
    """Return a sample's size, the length of its last axis in memory, its pixels, and what divides by that length."""
    size, channels = math.prod(x.shape[1:]), x.shape[1] if x.dim() > 1 else 1
    pixels = size // channels
    inner = channels if channels_last else pixels
    shift = (inner - 1).bit_length()
    magic = ((1 << 32) * ((1 << shift) - inner)) // inner + 1
    return size, inner, pixels, magic - (1 << 32) * (magic >= 1 << 31), shift  # the 32 bits of magic, as an int32


def _choose_types(x: Tensor) -> tuple[Any, Any]:
    """Return the types of the computation and of positions, whose eight rows must fit into 31 bits."""
    size = math.prod(x.shape[1:])
    return _NOISE_DTYPES[noise_dtype(x)], tl.int64 if size > 2**28 - 1024 else tl.int32


def _count_groups(batch: int) -> int:
    """Return the number of groups of eight samples that a batch can touch, wherever it starts."""
    return (batch + 6) // 8 + 1


def _choose_block(x: Tensor) -> int:
    return min(512, max(128, 1 << (math.prod(x.shape[1:]) - 1).bit_length()))


def _launch_kernel(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: tuple[Any, ...]) -> None:
    """Launch a kernel on the device of its first argument, with four neurons per thread, or two in float64."""
    device, block = arguments[0].device, constants[-1]
    warp = 32 if torch.version.hip is None else 64
    neurons = 2 if arguments[0].dtype == torch.float64 else 4  # with four, float64 spills
    on_device = nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
    with on_device:
        kernel[grid](*arguments, *constants, num_warps=max(1, block // (neurons * warp)), enable_fp_fusion=True)
