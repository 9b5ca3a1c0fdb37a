"""The compiled half of `noiseprop.noise.kernels`: loops that LLVM vectorises, through numba.

What makes them fast: the counter's words stay in 64-bit lanes, where one multiplication gives both halves; logarithm,
sine and cosine are branch-free polynomials; a block of 8 x `WIDTH` normals is made in the first-level cache by a loop
of constant length, then added row by row, so that odd sizes cost no more than the rest of one block. Threads take
tiles of neurons from a shared counter, and every sum over the batch runs in an order that depends on the shapes alone.
"""
# numba types what it compiles by itself, and its intrinsics are called without their first argument:
# pyright: basic, reportCallIssue=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from noiseprop.noise.kernels import CHUNK
from noiseprop.noise.philox import ANGLE_BITS, CALL, LANES, MULTIPLIERS, RADIUS_BITS, ROUNDS, WEYL

WIDTH = 256  # neurons in a block
VECTOR = np.uintp(16)
TILE = 1024  # neurons in a task

F = np.float32
_m, _t = np.linspace(1, 2 - 1e-9, 20001), np.linspace(1e-12, 0.25, 20001)


def _fit(x: Any, y: Any, degree: int, domain: list[float]) -> list[np.float32]:
    fitted = np.polynomial.Chebyshev.fit(x, y, degree, domain=domain)
    return [F(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef]


# -2 log(u) = -2 log(2) (exponent + 1) + (m - 2) q(m) for u = m 2**exponent: exact where u nears 1 and the radius 0
L0, L1, L2, L3, L4, L5 = _fit(_m, -2 * np.log(_m / 2) / (_m - 2), 5, [1, 2])
S0, S1, S2, S3 = _fit(_t, np.sin(np.pi * np.sqrt(_t)) / np.sqrt(_t), 3, [0, 0.25])
C0, C1, C2, C3, C4 = _fit(_t, np.cos(np.pi * np.sqrt(_t)), 4, [0, 0.25])
M0, M1, W0, W1 = (np.uint64(v) for v in (*MULTIPLIERS, *WEYL))
LOW, WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
R1, R2, R3, R4, R5, R6, R7 = (np.uintp(row * WIDTH) for row in range(1, LANES))
MANTISSA, ONE, EXPONENT = np.uint32(0x7FFFFF), np.uint32(0x3F800000), np.uint32(23)
ANGLE_SHIFT, ANGLE_MASK = np.uint32(ANGLE_BITS), np.uint32(2**ANGLE_BITS - 1)
MINUS_2_LN2, HALF, TWO, TOP = F(-2 * math.log(2)), F(0.5), F(2), F(127 + RADIUS_BITS - 1)
ANGLE_STEP, ANGLE_START = F(2.0**-ANGLE_BITS), F(0.5 - 0.5 * 2.0**-ANGLE_BITS)
EXACT = {"contract"}  # a NaN in x or in the gradient must come out as one

# numba widens 32-bit integers to 64 bits, which halves the vector; these operations keep the width.
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _binary(name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, a: Any, b: Any) -> Any:
        return types.uint32(types.uint32, types.uint32), lambda c, builder, s, v: getattr(builder, name)(*v)

    return op


def _cast(name: str, source: Any, target: Any, llvm: Any) -> Any:
    @intrinsic
    def op(typingctx: Any, a: Any) -> Any:
        return target(source), lambda c, builder, s, v: getattr(builder, name)(v[0], llvm)

    return op


_shr, _and, _or = map(_binary, ("lshr", "and_", "or_"))
_bits = _cast("bitcast", types.float32, types.uint32, _I32)
_float = _cast("bitcast", types.uint32, types.float32, _F32)
_number = _cast("sitofp", types.uint32, types.float32, _F32)
_low = _cast("trunc", types.uint64, types.uint32, _I32)


@intrinsic
def _pointer(typingctx: Any, address: Any, dtype: Any) -> Any:
    """An address as a pointer to numbers of a dtype."""
    pointer = types.CPointer(dtype.dtype)
    convert = lambda c, builder, s, v: builder.inttoptr(v[0], c.get_value_type(pointer))  # noqa: E731
    return pointer(types.int64, dtype), convert


@intrinsic
def _next_task(typingctx: Any, counter: Any) -> Any:
    one = ir.Constant(_I64, 1)
    return types.int64(counter), lambda c, builder, s, v: builder.atomic_rmw("add", v[0], one, "monotonic")


@intrinsic
def _widen(typingctx: Any, stored: Any) -> Any:
    """A stored number as the float that is computed with; bfloat16 is stored as its 16 bits."""
    if stored != types.uint16:
        return stored(stored), lambda c, builder, s, v: v[0]

    def shift_up(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        bits = builder.shl(builder.zext(values[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(bits, _F32)

    return types.float32(stored), shift_up


@intrinsic
def _narrow(typingctx: Any, value: Any, like: Any) -> Any:
    """A float as it is stored; bfloat16 rounds to nearest even, and a NaN stays one."""
    if like != types.uint16:
        return like(value, like), lambda c, builder, s, v: c.cast(builder, v[0], value, like)

    def round_to_bfloat16(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        const = lambda n: ir.Constant(_I32, n)  # noqa: E731
        bits = builder.bitcast(values[0], _I32)
        even = builder.and_(builder.lshr(bits, const(16)), const(1))
        rounded = builder.lshr(builder.add(bits, builder.add(even, const(0x7FFF))), const(16))
        nan = builder.fcmp_unordered("uno", values[0], values[0])
        return builder.trunc(builder.select(nan, const(0x7FC0), rounded), ir.IntType(16))

    return types.uint16(types.float32, types.uint16), round_to_bfloat16


@njit(fastmath=True, inline="always")
def _box_muller(wide: Any) -> Any:
    word = _low(wide)
    uniform = _bits(_number(_shr(word, ANGLE_SHIFT)) + HALF)
    m = _float(_or(_and(uniform, MANTISSA), ONE))
    rest = (m - TWO) * (L0 + m * (L1 + m * (L2 + m * (L3 + m * (L4 + m * L5)))))
    radius = F(math.sqrt((_number(_shr(uniform, EXPONENT)) - TOP) * MINUS_2_LN2 + rest))
    v = _number(_and(word, ANGLE_MASK)) * ANGLE_STEP - ANGLE_START
    t = v * v
    sine = v * (S0 + t * (S1 + t * (S2 + t * S3)))  # of half the angle
    cosine = C0 + t * (C1 + t * (C2 + t * (C3 + t * C4)))
    twice = radius * sine
    twice += twice
    return radius - twice * sine, twice * cosine


@njit(fastmath=True)
def _normals(eps: Any, neurons: Any, n: Any, group: Any, start: Any, layer: Any, seed: Any) -> None:
    """eps[lane * WIDTH + j] = the normal of neuron neurons[j] in sample 8 * group + lane."""
    for block in range(np.uintp(0), n, VECTOR):
        for lane in range(VECTOR):  # of constant length, so that it becomes straight vector code without a rest
            j = block + lane
            c0, c1, c2, c3 = np.uint64(neurons[j]), group, start, layer
            k0, k1 = seed & LOW, seed >> WORD
            for _ in range(ROUNDS):
                p0, p1 = (c0 & LOW) * M0, (c2 & LOW) * M1
                c0, c1, c2, c3 = (p1 >> WORD) ^ c1 ^ k0, p1, (p0 >> WORD) ^ c3 ^ k1, p0
                k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
            eps[j], eps[R1 + j] = _box_muller(c0)
            eps[R2 + j], eps[R3 + j] = _box_muller(c1)
            eps[R4 + j], eps[R5 + j] = _box_muller(c2)
            eps[R6 + j], eps[R7 + j] = _box_muller(c3)


@njit
def _number_neurons(neurons: Any, start: int, size: int, channels: int) -> None:
    """Which neuron, counted as in a contiguous tensor, stands at each place of a block of memory."""
    if channels == 0:
        for j in range(WIDTH):
            neurons[j] = start + j
    else:
        pixels = size // channels
        channel, pixel = start % channels, start // channels
        for j in range(WIDTH):
            neurons[j] = channel * pixels + pixel
            channel += 1
            if channel == channels:
                channel, pixel = 0, pixel + 1


@njit(fastmath=EXACT, inline="always")
def _plan(a: Any) -> Any:
    """The sizes that both kernels loop over, from their arguments."""
    key = carray(_pointer(a[5], types.int64), (5,))
    draws, batch, size = a[6], a[7], a[8]
    first, layer = key[4], np.uint64(key[2] + key[3] * CALL)
    per_draw = (first + batch - 1) // LANES - first // LANES + 1
    groups, tiles = draws * per_draw, (size + TILE - 1) // TILE
    return key, draws, batch, size, a[9], first, layer, per_draw, groups, tiles


@njit(fastmath=EXACT)
def _forward(a: Any, stored: Any, wide: Any) -> None:
    key, draws, batch, size, channels, first, layer, per_draw, groups, tiles = _plan(a)
    length = draws * batch * size
    x, y = carray(_pointer(a[1], stored), (length,)), carray(_pointer(a[2], stored), (length,))
    sigma = carray(_pointer(a[3], wide), (size,))
    has_mu = a[4] != 0
    mu = carray(_pointer(a[4], wide), (size,)) if has_mu else sigma
    eps, neurons = np.empty(LANES * WIDTH, F), np.empty(WIDTH, np.uint32)
    while True:
        task = _next_task(a)
        if task >= tiles * ((groups + CHUNK - 1) // CHUNK):
            break
        chunk, tile = task // tiles, task % tiles
        for i in range(tile * TILE, min(size, (tile + 1) * TILE), WIDTH):
            n, s = np.uintp(min(WIDTH, size - i)), np.uintp(i)  # unsigned: no index can count from the end
            whole = n - n % VECTOR
            _number_neurons(neurons, i, size, channels)
            for g in range(chunk * CHUNK, min(groups, (chunk + 1) * CHUNK)):
                draw, group = g // per_draw, first // LANES + g % per_draw
                _normals(eps, neurons, n, np.uint64(group), np.uint64(key[1] + draw), layer, np.uint64(key[0]))
                for lane in range(LANES):
                    sample = group * LANES + lane - first
                    if 0 <= sample < batch:
                        o, e = np.uintp((draw * batch + sample) * size + i), np.uintp(lane * WIDTH)
                        if has_mu:
                            for j in range(n):
                                z = mu[s + j] + sigma[s + j] * eps[e + j]
                                y[o + j] = _narrow(_widen(x[o + j]) + z, y[o + j])
                        else:
                            for block in range(np.uintp(0), whole, VECTOR):
                                for j in range(block, block + VECTOR):
                                    y[o + j] = _narrow(_widen(x[o + j]) + sigma[s + j] * eps[e + j], y[o + j])
                            for j in range(whole, n):
                                y[o + j] = _narrow(_widen(x[o + j]) + sigma[s + j] * eps[e + j], y[o + j])


@njit(fastmath=EXACT)
def _backward(a: Any, stored: Any, wide: Any) -> None:
    key, draws, batch, size, channels, first, layer, per_draw, groups, tiles = _plan(a)
    grad = carray(_pointer(a[1], stored), (draws * batch * size,))
    chunks = (groups + CHUNK - 1) // CHUNK
    parts = carray(_pointer(a[2], wide), (chunks * size,))
    eps, neurons = np.empty(LANES * WIDTH, F), np.empty(WIDTH, np.uint32)
    while True:
        task = _next_task(a)
        if task >= tiles * chunks:
            break
        chunk, tile = task // tiles, task % tiles
        for i in range(tile * TILE, min(size, (tile + 1) * TILE), WIDTH):
            n, t = np.uintp(min(WIDTH, size - i)), np.uintp(chunk * size + i)
            whole = n - n % VECTOR
            for j in range(n):
                parts[t + j] = 0
            _number_neurons(neurons, i, size, channels)
            for g in range(chunk * CHUNK, min(groups, (chunk + 1) * CHUNK)):
                draw, group = g // per_draw, first // LANES + g % per_draw
                _normals(eps, neurons, n, np.uint64(group), np.uint64(key[1] + draw), layer, np.uint64(key[0]))
                for lane in range(LANES):
                    sample = group * LANES + lane - first
                    if 0 <= sample < batch:
                        o, e = np.uintp((draw * batch + sample) * size + i), np.uintp(lane * WIDTH)
                        for block in range(np.uintp(0), whole, VECTOR):
                            for j in range(block, block + VECTOR):
                                parts[t + j] += _widen(grad[o + j]) * eps[e + j]
                        for j in range(whole, n):
                            parts[t + j] += _widen(grad[o + j]) * eps[e + j]


@njit(fastmath=EXACT)
def _adam(a: Any, number: Any) -> None:
    """Eq. 7 for a list of tensors: rows of (sigma, gradient, h, v, size), and (b1, b2, lr / c1, 1 / c2, eps)."""
    rows = carray(_pointer(a[2], types.int64), (a[1] * 5,))
    settings = carray(_pointer(a[3], types.float64), (5,))
    b1, b2, rate, scale, eps = settings
    keep1, take1, keep2, take2 = number(b1), number(1 - b1), number(b2), number(1 - b2)
    rate_, scale_, eps_ = number(rate), number(scale), number(eps)
    for k in range(a[1]):
        n = rows[5 * k + 4]
        sigma = carray(_pointer(rows[5 * k], number), (n,))
        gradient = carray(_pointer(rows[5 * k + 1], number), (n,))
        h, v = carray(_pointer(rows[5 * k + 2], number), (n,)), carray(_pointer(rows[5 * k + 3], number), (n,))
        for j in range(n):
            g = gradient[j]
            h[j] = keep1 * h[j] + take1 * g
            v[j] = keep2 * v[j] + take2 * g * g
            sigma[j] = abs(sigma[j] - rate_ * h[j] / np.sqrt(v[j] * scale_ + eps_))


def _adam_float32(a: Any) -> None:
    _adam(a, types.float32)


def _adam_float64(a: Any) -> None:
    _adam(a, types.float64)


def _forward_float32(a: Any) -> None:
    _forward(a, types.float32, types.float32)


def _forward_bfloat16(a: Any) -> None:
    _forward(a, types.uint16, types.float32)


def _forward_float64(a: Any) -> None:
    _forward(a, types.float64, types.float64)


def _backward_float32(a: Any) -> None:
    _backward(a, types.float32, types.float32)


def _backward_bfloat16(a: Any) -> None:
    _backward(a, types.uint16, types.float32)


def _backward_float64(a: Any) -> None:
    _backward(a, types.float64, types.float64)


_ENTRIES = (
    _forward_float32,
    _forward_bfloat16,
    _forward_float64,
    _backward_float32,
    _backward_bfloat16,
    _backward_float64,
    _adam_float32,
    _adam_float64,
)


@cache
def kernel(name: str) -> tuple[int, Any]:
    """Compile "forward_float32" and the like once, or take it from numba's cache on disk: address and function."""
    entry = next(entry for entry in _ENTRIES if entry.__name__ == f"_{name}")
    address = cfunc(types.void(types.CPointer(types.int64)), cache=True)(entry).address
    assert address is not None
    return address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
