"""The normals and the loops that use them, which numba compiles and LLVM vectorises, for `noiseprop.noise.kernels.dispatch`.

What makes them fast: the counter's words stay in 64-bit lanes, where one multiplication gives both halves; logarithm,
sine and cosine are branch-free polynomials; a block of 8 x `WIDTH` normals is made in the first-level cache by a loop
of constant length, then added row by row, so that odd sizes cost no more than the rest of one block. Threads take
tiles of neurons from a shared counter, and every sum over the batch runs in an order that depends on the shapes alone.

It is one file because numba's cache on disk asks only whether the file of a kernel's entry has changed.
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

from noiseprop.noise.kernels.dispatch import CHUNK
from noiseprop.noise.kernels.philox import ANGLE_BITS, CALL, LANES, MULTIPLIERS, RADIUS_BITS, ROUNDS, WEYL

WIDTH = 256  # neurons in a block
VECTOR = np.uintp(16)
TILE = 1024  # neurons in a task

F = np.float32
# Least-squares polynomials, written out so that every machine has the same bits (test_kernels.py fits them again):
# -2 log(u) = -2 log(2) (exponent + 1) + (m - 2) q(m) for u = m 2**exponent: exact where u nears 1 and the radius 0;
# sin(pi v) = v s(v^2) and cos(pi v) = c(v^2) for v in [-1/2, 1/2].
LOGARITHM = (-2.74896598, 2.64982152, -2.01455641, 0.943776488, -0.242535263, 0.0261848327)
SINE = (3.14158821, -5.16736269, 2.54383159, -0.559447229)
COSINE = (0.999999881, -4.93479061, 4.05839109, -1.33182168, 0.219685689)
L0, L1, L2, L3, L4, L5 = map(F, LOGARITHM)
S0, S1, S2, S3 = map(F, SINE)
C0, C1, C2, C3, C4 = map(F, COSINE)
M0, M1, W0, W1 = (np.uint64(v) for v in (*MULTIPLIERS, *WEYL))
LOW, WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
R1, R2, R3, R4, R5, R6, R7 = (np.uintp(row * WIDTH) for row in range(1, LANES))
MANTISSA, ONE, EXPONENT = np.uint32(0x7FFFFF), np.uint32(0x3F800000), np.uint32(23)
ANGLE_SHIFT, ANGLE_MASK = np.uint32(ANGLE_BITS), np.uint32(2**ANGLE_BITS - 1)
MINUS_2_LN2, HALF, TWO, TOP = F(-2 * math.log(2)), F(0.5), F(2), F(127 + RADIUS_BITS - 1)
ANGLE_STEP, ANGLE_START = F(2.0**-ANGLE_BITS), F(0.5 - 0.5 * 2.0**-ANGLE_BITS)

# numba widens 32-bit integers to 64 bits, which halves the vector; these operations keep the width.
_I16, _I32, _I64, _F32, _F64 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_STORED = {types.uint16: _I16, types.float32: _F32, types.float64: _F64}
_BYTES = {types.uint16: 2, types.float32: 4, types.float64: 8}


def _several(kind: Any, width: int) -> Any:
    return kind if width == 1 else ir.VectorType(kind, width)


def _constant(number: int, width: int) -> Any:
    return ir.Constant(_several(_I32, width), number if width == 1 else [number] * width)


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
def pointer(typingctx: Any, address: Any, dtype: Any) -> Any:
    """An address as a pointer to numbers of a dtype."""
    kind = types.CPointer(dtype.dtype)
    convert = lambda c, builder, s, v: builder.inttoptr(v[0], c.get_value_type(kind))  # noqa: E731
    return kind(types.int64, dtype), convert


@intrinsic
def _next_task(typingctx: Any, counter: Any) -> Any:
    one = ir.Constant(_I64, 1)
    return types.int64(counter), lambda c, builder, s, v: builder.atomic_rmw("add", v[0], one, "monotonic")


def _load(builder: Any, address: Any, kind: Any, width: int) -> Any:
    """`width` stored numbers from an address, as the floats that are computed with; bfloat16 is stored as its bits."""
    value = builder.load(builder.inttoptr(address, _several(_STORED[kind], width).as_pointer()))
    value.align = _BYTES[kind]
    if kind != types.uint16:
        return value
    bits = builder.shl(builder.zext(value, _several(_I32, width)), _constant(16, width))
    return builder.bitcast(bits, _several(_F32, width))


def _store(builder: Any, value: Any, address: Any, kind: Any, width: int) -> None:
    """Put `width` floats at an address; bfloat16 rounds to nearest even, and a NaN stays one."""
    if kind == types.uint16:
        bits = builder.bitcast(value, _several(_I32, width))
        even = builder.and_(builder.lshr(bits, _constant(16, width)), _constant(1, width))
        rounded = builder.add(bits, builder.add(even, _constant(0x7FFF, width)))
        nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(nan, _constant(0x7FC00000, width), rounded)
        value = builder.trunc(builder.lshr(rounded, _constant(16, width)), _several(_I16, width))
    builder.store(value, builder.inttoptr(address, _several(_STORED[kind], width).as_pointer()), align=_BYTES[kind])


def _product(builder: Any, a: Any, address: Any, kind: Any, width: int) -> Any:
    """What stands in `a`, times the normals at an address."""
    eps = _load(builder, address, types.float32, width)
    if kind == types.float64:
        eps = builder.fpext(eps, _several(_F64, width))
    return builder.fmul(a, eps, flags=("contract",))  # no other liberty: a NaN in x or grad must come out as one


def _noise_op(width: int) -> Any:
    """``y = x + (mu + sigma * eps)`` for `width` neurons of one sample, all by their addresses."""

    @intrinsic
    def op(typingctx: Any, stored: Any, wide: Any, y: Any, x: Any, sigma: Any, mu: Any, eps: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            at_y, at_x, at_sigma, at_mu, at_eps = values[2:]
            z = _product(builder, _load(builder, at_sigma, wide.dtype, width), at_eps, wide.dtype, width)
            z = builder.fadd(_load(builder, at_mu, wide.dtype, width), z, flags=("contract",))
            value = builder.fadd(_load(builder, at_x, stored.dtype, width), z, flags=("contract",))
            _store(builder, value, at_y, stored.dtype, width)
            return context.get_dummy_value()

        return types.void(stored, wide, *[types.int64] * 5), emit

    return op


def _gradient_op(width: int) -> Any:
    """``total += grad * eps`` for `width` neurons of one sample, all by their addresses."""

    @intrinsic
    def op(typingctx: Any, stored: Any, wide: Any, total: Any, grad: Any, eps: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            at_total, at_grad, at_eps = values[2:]
            value = _product(builder, _load(builder, at_grad, stored.dtype, width), at_eps, wide.dtype, width)
            value = builder.fadd(_load(builder, at_total, wide.dtype, width), value, flags=("contract",))
            _store(builder, value, at_total, wide.dtype, width)
            return context.get_dummy_value()

        return types.void(stored, wide, *[types.int64] * 3), emit

    return op


_noise_one, _noise_vector = _noise_op(1), _noise_op(int(VECTOR))
_gradient_one, _gradient_vector = _gradient_op(1), _gradient_op(int(VECTOR))


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


@njit(inline="always")
def _plan(a: Any) -> Any:
    """The sizes that both kernels loop over, from their arguments."""
    key = carray(pointer(a[5], types.int64), (5,))
    draws, batch, size = a[6], a[7], a[8]
    first, layer = key[4], np.uint64(key[2] + key[3] * CALL)
    per_draw = (first + batch - 1) // LANES - first // LANES + 1
    groups, tiles = draws * per_draw, (size + TILE - 1) // TILE
    return key, batch, size, a[9], first, layer, per_draw, groups, tiles


@njit
def _forward(a: Any, stored: Any, wide: Any, stored_bytes: int, wide_bytes: int) -> None:
    key, batch, size, channels, first, layer, per_draw, groups, tiles = _plan(a)
    eps, neurons, nothing = np.empty(LANES * WIDTH, F), np.empty(WIDTH, np.uint32), np.zeros(int(VECTOR))
    mu_start, mu_bytes = (a[4], wide_bytes) if a[4] else (nothing.ctypes.data, 0)
    while True:
        task = _next_task(a)
        if task >= tiles * ((groups + CHUNK - 1) // CHUNK):
            break
        chunk, tile = task // tiles, task % tiles
        for i in range(tile * TILE, min(size, (tile + 1) * TILE), WIDTH):
            n = min(WIDTH, size - i)
            whole = n - n % 16
            sigma, mu = a[3] + i * wide_bytes, mu_start + i * mu_bytes
            _number_neurons(neurons, i, size, channels)
            for g in range(chunk * CHUNK, min(groups, (chunk + 1) * CHUNK)):
                draw, group = g // per_draw, first // LANES + g % per_draw
                _normals(
                    eps, neurons, np.uintp(n), np.uint64(group), np.uint64(key[1] + draw), layer, np.uint64(key[0])
                )
                for lane in range(LANES):
                    sample = group * LANES + lane - first
                    if 0 <= sample < batch:
                        o = ((draw * batch + sample) * size + i) * stored_bytes
                        y, x, e = a[2] + o, a[1] + o, eps.ctypes.data + lane * WIDTH * 4
                        for j in range(0, whole, 16):
                            _noise_vector(
                                stored,
                                wide,
                                y + j * stored_bytes,
                                x + j * stored_bytes,
                                sigma + j * wide_bytes,
                                mu + j * mu_bytes,
                                e + j * 4,
                            )
                        for j in range(whole, n):
                            _noise_one(
                                stored,
                                wide,
                                y + j * stored_bytes,
                                x + j * stored_bytes,
                                sigma + j * wide_bytes,
                                mu + j * mu_bytes,
                                e + j * 4,
                            )


@njit
def _backward(a: Any, stored: Any, wide: Any, stored_bytes: int, wide_bytes: int) -> None:
    key, batch, size, channels, first, layer, per_draw, groups, tiles = _plan(a)
    chunks = (groups + CHUNK - 1) // CHUNK
    parts = carray(pointer(a[2], wide), (chunks * size,))
    eps, neurons = np.empty(LANES * WIDTH, F), np.empty(WIDTH, np.uint32)
    while True:
        task = _next_task(a)
        if task >= tiles * chunks:
            break
        chunk, tile = task // tiles, task % tiles
        for i in range(tile * TILE, min(size, (tile + 1) * TILE), WIDTH):
            n = min(WIDTH, size - i)
            whole = n - n % 16
            parts[chunk * size + i : chunk * size + i + n] = 0
            total = a[2] + (chunk * size + i) * wide_bytes
            _number_neurons(neurons, i, size, channels)
            for g in range(chunk * CHUNK, min(groups, (chunk + 1) * CHUNK)):
                draw, group = g // per_draw, first // LANES + g % per_draw
                _normals(
                    eps, neurons, np.uintp(n), np.uint64(group), np.uint64(key[1] + draw), layer, np.uint64(key[0])
                )
                for lane in range(LANES):
                    sample = group * LANES + lane - first
                    if 0 <= sample < batch:
                        grad = a[1] + ((draw * batch + sample) * size + i) * stored_bytes
                        e = eps.ctypes.data + lane * WIDTH * 4
                        for j in range(0, whole, 16):
                            _gradient_vector(stored, wide, total + j * wide_bytes, grad + j * stored_bytes, e + j * 4)
                        for j in range(whole, n):
                            _gradient_one(stored, wide, total + j * wide_bytes, grad + j * stored_bytes, e + j * 4)


def _forward_float32(a: Any) -> None:
    _forward(a, types.float32, types.float32, 4, 4)


def _forward_bfloat16(a: Any) -> None:
    _forward(a, types.uint16, types.float32, 2, 4)


def _forward_float64(a: Any) -> None:
    _forward(a, types.float64, types.float64, 8, 8)


def _backward_float32(a: Any) -> None:
    _backward(a, types.float32, types.float32, 4, 4)


def _backward_bfloat16(a: Any) -> None:
    _backward(a, types.uint16, types.float32, 2, 4)


def _backward_float64(a: Any) -> None:
    _backward(a, types.float64, types.float64, 8, 8)


_ENTRIES = (
    _forward_float32,
    _forward_bfloat16,
    _forward_float64,
    _backward_float32,
    _backward_bfloat16,
    _backward_float64,
)


@cache
def kernel(name: str) -> tuple[int, Any]:
    """The kernel "forward_float32" and the like: address and function."""
    return load(next(entry for entry in _ENTRIES if entry.__name__ == f"_{name}"))


def load(entry: Any) -> tuple[int, Any]:
    """Compile a kernel, or take it from numba's cache on disk: address and function."""
    signature = types.void(types.CPointer(types.int64))
    try:
        address = cfunc(signature, cache=True)(entry).address
    except (RuntimeError, OSError):  # no folder can be written to, or there is no room: every process compiles
        address = cfunc(signature)(entry).address
    assert address is not None
    return address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
