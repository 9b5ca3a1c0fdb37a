"""Noise in one pass over memory on the CPU: loops that numba compiles and LLVM vectorises.

Three things make them fast. The words of the counter stay in 64-bit lanes, where one multiplication gives both halves.
Logarithm, sine and cosine are polynomials without branches. A loop of constant length draws a block of
8 x `BLOCK_NEURONS` normals in the first-level cache, which is then added row by row, so that odd sizes cost at most
the rest of one block. Threads take tiles of neurons from a shared counter, and every sum over the batch runs in an
order that depends on the shapes alone.

All of it stays in one file because numba's cache on disk checks only whether the file of a kernel's entry changed.
"""
# numba infers the types itself, and its intrinsics are called without their first argument:
# pyright: basic, reportCallIssue=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from noiseprop.noise.kernels.philox import (
    ANGLE_BITS,
    CALL_STRIDE,
    GROUPS_PER_CHUNK,
    LANES,
    MULTIPLIERS,
    RADIUS_BITS,
    ROUNDS,
    WEYL,
)

BLOCK_NEURONS = 256  # neurons in a block
VECTOR = np.uintp(16)
TILE_NEURONS = 1024  # neurons in a task

F = np.float32
# Least-squares polynomials, written out so that every machine has the same bits (test_dispatch.py fits them again):
# -2 log(u) = -2 log(2) (exponent + 1) + (m - 2) q(m) for u = m 2**exponent, exact near u = 1, where the radius is 0;
# sin(pi v) = v s(v^2) and cos(pi v) = c(v^2) for v in [-1/2, 1/2].
LOGARITHM = (-2.74896598, 2.64982152, -2.01455641, 0.943776488, -0.242535263, 0.0261848327)
SINE = (3.14158821, -5.16736269, 2.54383159, -0.559447229)
COSINE = (0.999999881, -4.93479061, 4.05839109, -1.33182168, 0.219685689)
L0, L1, L2, L3, L4, L5 = map(F, LOGARITHM)
S0, S1, S2, S3 = map(F, SINE)
C0, C1, C2, C3, C4 = map(F, COSINE)
M0, M1, W0, W1 = (np.uint64(v) for v in (*MULTIPLIERS, *WEYL))
LOW, WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
R1, R2, R3, R4, R5, R6, R7 = (np.uintp(row * BLOCK_NEURONS) for row in range(1, LANES))
MANTISSA, ONE, EXPONENT = np.uint32(0x7FFFFF), np.uint32(0x3F800000), np.uint32(23)
ANGLE_SHIFT, ANGLE_MASK = np.uint32(ANGLE_BITS), np.uint32(2**ANGLE_BITS - 1)
MINUS_2_LN2, HALF, TWO, TOP = F(-2 * math.log(2)), F(0.5), F(2), F(127 + RADIUS_BITS - 1)
ANGLE_STEP, ANGLE_START = F(2.0**-ANGLE_BITS), F(0.5 - 0.5 * 2.0**-ANGLE_BITS)

# numba widens 32-bit integers to 64 bits, which halves the vector; these operations keep the width.
_I16, _I32, _I64, _F32, _F64 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_STORED = {types.uint16: _I16, types.float32: _F32, types.float64: _F64}
_BYTES = {types.uint16: 2, types.float32: 4, types.float64: 8}


def _vector_type(kind: Any, width: int) -> Any:
    return kind if width == 1 else ir.VectorType(kind, width)


def _vector_constant(number: int, width: int) -> Any:
    return ir.Constant(_vector_type(_I32, width), number if width == 1 else [number] * width)


def _define_binary_op(name: str) -> Any:
    @intrinsic
    def element_op(typingctx: Any, a: Any, b: Any) -> Any:
        return types.uint32(types.uint32, types.uint32), lambda c, builder, s, v: getattr(builder, name)(*v)

    return element_op


def _define_cast(name: str, source: Any, target: Any, llvm: Any) -> Any:
    @intrinsic
    def element_op(typingctx: Any, a: Any) -> Any:
        return target(source), lambda c, builder, s, v: getattr(builder, name)(v[0], llvm)

    return element_op


_shr, _and, _or = map(_define_binary_op, ("lshr", "and_", "or_"))
_as_bits = _define_cast("bitcast", types.float32, types.uint32, _I32)
_as_float = _define_cast("bitcast", types.uint32, types.float32, _F32)
_int_to_float = _define_cast("sitofp", types.uint32, types.float32, _F32)
_low_word = _define_cast("trunc", types.uint64, types.uint32, _I32)


@intrinsic
def pointer_to(typingctx: Any, address: Any, dtype: Any) -> Any:
    """Convert an address to a pointer to numbers of a dtype."""
    kind = types.CPointer(dtype.dtype)
    convert = lambda c, builder, s, v: builder.inttoptr(v[0], c.get_value_type(kind))  # noqa: E731
    return kind(types.int64, dtype), convert


@intrinsic
def _next_task(typingctx: Any, counter: Any) -> Any:
    one = ir.Constant(_I64, 1)
    return types.int64(counter), lambda c, builder, s, v: builder.atomic_rmw("add", v[0], one, "monotonic")


def _load_floats(builder: Any, address: Any, kind: Any, width: int) -> Any:
    """Load `width` numbers from an address as floats of the computation; bfloat16 is stored as its bits."""
    value = builder.load(builder.inttoptr(address, _vector_type(_STORED[kind], width).as_pointer()))
    value.align = _BYTES[kind]
    if kind != types.uint16:
        return value
    bits = builder.shl(builder.zext(value, _vector_type(_I32, width)), _vector_constant(16, width))
    return builder.bitcast(bits, _vector_type(_F32, width))


def _store_floats(builder: Any, value: Any, address: Any, kind: Any, width: int) -> None:
    """Store `width` floats at an address; bfloat16 rounds to nearest even, and a NaN stays a NaN."""
    if kind == types.uint16:
        bits = builder.bitcast(value, _vector_type(_I32, width))
        even = builder.and_(builder.lshr(bits, _vector_constant(16, width)), _vector_constant(1, width))
        rounded = builder.add(bits, builder.add(even, _vector_constant(0x7FFF, width)))
        nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(nan, _vector_constant(0x7FC00000, width), rounded)
        value = builder.trunc(builder.lshr(rounded, _vector_constant(16, width)), _vector_type(_I16, width))
    builder.store(value, builder.inttoptr(address, _vector_type(_STORED[kind], width).as_pointer()), align=_BYTES[kind])


def _times_normals(builder: Any, a: Any, address: Any, kind: Any, width: int) -> Any:
    """Multiply `a` by the normals at an address."""
    eps = _load_floats(builder, address, types.float32, width)
    if kind == types.float64:
        eps = builder.fpext(eps, _vector_type(_F64, width))
    return builder.fmul(a, eps, flags=("contract",))  # no other freedom: a NaN must stay a NaN


def _define_noise_op(width: int) -> Any:
    """Define ``y = x + (mu + sigma * eps)`` for `width` neurons of one sample, given by their addresses."""

    @intrinsic
    def element_op(typingctx: Any, stored: Any, wide: Any, y: Any, x: Any, sigma: Any, mu: Any, eps: Any) -> Any:
        def emit_ir(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            at_y, at_x, at_sigma, at_mu, at_eps = values[2:]
            z = _times_normals(builder, _load_floats(builder, at_sigma, wide.dtype, width), at_eps, wide.dtype, width)
            z = builder.fadd(_load_floats(builder, at_mu, wide.dtype, width), z, flags=("contract",))
            value = builder.fadd(_load_floats(builder, at_x, stored.dtype, width), z, flags=("contract",))
            _store_floats(builder, value, at_y, stored.dtype, width)
            return context.get_dummy_value()

        return types.void(stored, wide, *[types.int64] * 5), emit_ir

    return element_op


def _define_gradient_op(width: int) -> Any:
    """Define ``total += grad * eps`` for `width` neurons of one sample, given by their addresses."""

    @intrinsic
    def element_op(typingctx: Any, stored: Any, wide: Any, total: Any, grad: Any, eps: Any) -> Any:
        def emit_ir(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            at_total, at_grad, at_eps = values[2:]
            grad = _load_floats(builder, at_grad, stored.dtype, width)
            value = _times_normals(builder, grad, at_eps, wide.dtype, width)
            value = builder.fadd(_load_floats(builder, at_total, wide.dtype, width), value, flags=("contract",))
            _store_floats(builder, value, at_total, wide.dtype, width)
            return context.get_dummy_value()

        return types.void(stored, wide, *[types.int64] * 3), emit_ir

    return element_op


_noise_one, _noise_vector = _define_noise_op(1), _define_noise_op(int(VECTOR))
_gradient_one, _gradient_vector = _define_gradient_op(1), _define_gradient_op(int(VECTOR))


@njit(fastmath=True, inline="always")
def _transform_to_normals(wide: Any) -> Any:
    word = _low_word(wide)
    uniform = _as_bits(_int_to_float(_shr(word, ANGLE_SHIFT)) + HALF)
    m = _as_float(_or(_and(uniform, MANTISSA), ONE))
    rest = (m - TWO) * (L0 + m * (L1 + m * (L2 + m * (L3 + m * (L4 + m * L5)))))
    radius = F(math.sqrt((_int_to_float(_shr(uniform, EXPONENT)) - TOP) * MINUS_2_LN2 + rest))
    v = _int_to_float(_and(word, ANGLE_MASK)) * ANGLE_STEP - ANGLE_START
    t = v * v
    sine = v * (S0 + t * (S1 + t * (S2 + t * S3)))  # of half the angle
    cosine = C0 + t * (C1 + t * (C2 + t * (C3 + t * C4)))
    twice = radius * sine
    twice += twice
    return radius - twice * sine, twice * cosine


@njit(fastmath=True)
def _draw_block(eps: Any, neurons: Any, n: Any, group: Any, start: Any, layer: Any, seed: Any) -> None:
    """Set eps[lane * BLOCK_NEURONS + j] to the normal of neuron neurons[j] in sample 8 * group + lane."""
    for block in range(np.uintp(0), n, VECTOR):
        for lane in range(VECTOR):  # constant length, so that it becomes straight vector code
            j = block + lane
            c0, c1, c2, c3 = np.uint64(neurons[j]), group, start, layer
            k0, k1 = seed & LOW, seed >> WORD
            for _ in range(ROUNDS):
                p0, p1 = (c0 & LOW) * M0, (c2 & LOW) * M1
                c0, c1, c2, c3 = (p1 >> WORD) ^ c1 ^ k0, p1, (p0 >> WORD) ^ c3 ^ k1, p0
                k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
            eps[j], eps[R1 + j] = _transform_to_normals(c0)
            eps[R2 + j], eps[R3 + j] = _transform_to_normals(c1)
            eps[R4 + j], eps[R5 + j] = _transform_to_normals(c2)
            eps[R6 + j], eps[R7 + j] = _transform_to_normals(c3)


@njit
def _number_neurons(neurons: Any, start: int, size: int, channels: int) -> None:
    """Set the number of the neuron, counted as in a contiguous tensor, at each position of a block of memory."""
    if channels == 0:
        for j in range(BLOCK_NEURONS):
            neurons[j] = start + j
    else:
        pixels = size // channels
        channel, pixel = start % channels, start // channels
        for j in range(BLOCK_NEURONS):
            neurons[j] = channel * pixels + pixel
            channel += 1
            if channel == channels:
                channel, pixel = 0, pixel + 1


@njit(inline="always")
def _unpack_sizes(a: Any) -> Any:
    """Return the sizes that both kernels loop over, from their arguments."""
    key = carray(pointer_to(a[5], types.int64), (5,))
    draws, batch, size = a[6], a[7], a[8]
    first, layer = key[4], np.uint64(key[2] + key[3] * CALL_STRIDE)
    per_draw = (first + batch - 1) // LANES - first // LANES + 1
    groups, tiles = draws * per_draw, (size + TILE_NEURONS - 1) // TILE_NEURONS
    return key, batch, size, a[9], first, layer, per_draw, groups, tiles


@njit
def _run_forward(a: Any, stored: Any, wide: Any, stored_bytes: int, wide_bytes: int) -> None:
    key, batch, size, channels, first, layer, per_draw, groups, tiles = _unpack_sizes(a)
    eps, neurons = np.empty(LANES * BLOCK_NEURONS, F), np.empty(BLOCK_NEURONS, np.uint32)
    zeros = np.zeros(int(VECTOR))
    mu_start, mu_bytes = (a[4], wide_bytes) if a[4] else (zeros.ctypes.data, 0)
    while True:
        task = _next_task(a)
        if task >= tiles * ((groups + GROUPS_PER_CHUNK - 1) // GROUPS_PER_CHUNK):
            break
        chunk, tile = task // tiles, task % tiles
        for i in range(tile * TILE_NEURONS, min(size, (tile + 1) * TILE_NEURONS), BLOCK_NEURONS):
            n = min(BLOCK_NEURONS, size - i)
            whole = n - n % 16
            sigma, mu = a[3] + i * wide_bytes, mu_start + i * mu_bytes
            _number_neurons(neurons, i, size, channels)
            for g in range(chunk * GROUPS_PER_CHUNK, min(groups, (chunk + 1) * GROUPS_PER_CHUNK)):
                draw, group = g // per_draw, first // LANES + g % per_draw
                _draw_block(
                    eps, neurons, np.uintp(n), np.uint64(group), np.uint64(key[1] + draw), layer, np.uint64(key[0])
                )
                for lane in range(LANES):
                    sample = group * LANES + lane - first
                    if 0 <= sample < batch:
                        o = ((draw * batch + sample) * size + i) * stored_bytes
                        y, x, e = a[2] + o, a[1] + o, eps.ctypes.data + lane * BLOCK_NEURONS * 4
                        for j in range(0, whole, 16):
                            s, w, m = j * stored_bytes, j * wide_bytes, j * mu_bytes
                            _noise_vector(stored, wide, y + s, x + s, sigma + w, mu + m, e + j * 4)
                        for j in range(whole, n):
                            s, w, m = j * stored_bytes, j * wide_bytes, j * mu_bytes
                            _noise_one(stored, wide, y + s, x + s, sigma + w, mu + m, e + j * 4)


@njit
def _run_backward(a: Any, stored: Any, wide: Any, stored_bytes: int, wide_bytes: int) -> None:
    key, batch, size, channels, first, layer, per_draw, groups, tiles = _unpack_sizes(a)
    chunks = (groups + GROUPS_PER_CHUNK - 1) // GROUPS_PER_CHUNK
    parts = carray(pointer_to(a[2], wide), (chunks * size,))
    eps, neurons = np.empty(LANES * BLOCK_NEURONS, F), np.empty(BLOCK_NEURONS, np.uint32)
    while True:
        task = _next_task(a)
        if task >= tiles * chunks:
            break
        chunk, tile = task // tiles, task % tiles
        for i in range(tile * TILE_NEURONS, min(size, (tile + 1) * TILE_NEURONS), BLOCK_NEURONS):
            n = min(BLOCK_NEURONS, size - i)
            whole = n - n % 16
            parts[chunk * size + i : chunk * size + i + n] = 0
            total = a[2] + (chunk * size + i) * wide_bytes
            _number_neurons(neurons, i, size, channels)
            for g in range(chunk * GROUPS_PER_CHUNK, min(groups, (chunk + 1) * GROUPS_PER_CHUNK)):
                draw, group = g // per_draw, first // LANES + g % per_draw
                _draw_block(
                    eps, neurons, np.uintp(n), np.uint64(group), np.uint64(key[1] + draw), layer, np.uint64(key[0])
                )
                for lane in range(LANES):
                    sample = group * LANES + lane - first
                    if 0 <= sample < batch:
                        grad = a[1] + ((draw * batch + sample) * size + i) * stored_bytes
                        e = eps.ctypes.data + lane * BLOCK_NEURONS * 4
                        for j in range(0, whole, 16):
                            _gradient_vector(stored, wide, total + j * wide_bytes, grad + j * stored_bytes, e + j * 4)
                        for j in range(whole, n):
                            _gradient_one(stored, wide, total + j * wide_bytes, grad + j * stored_bytes, e + j * 4)


def _forward_float32(a: Any) -> None:
    _run_forward(a, types.float32, types.float32, 4, 4)


def _forward_bfloat16(a: Any) -> None:
    _run_forward(a, types.uint16, types.float32, 2, 4)


def _forward_float64(a: Any) -> None:
    _run_forward(a, types.float64, types.float64, 8, 8)


def _backward_float32(a: Any) -> None:
    _run_backward(a, types.float32, types.float32, 4, 4)


def _backward_bfloat16(a: Any) -> None:
    _run_backward(a, types.uint16, types.float32, 2, 4)


def _backward_float64(a: Any) -> None:
    _run_backward(a, types.float64, types.float64, 8, 8)


_FORWARD_ENTRIES = (_forward_float32, _forward_bfloat16, _forward_float64)
_BACKWARD_ENTRIES = (_backward_float32, _backward_bfloat16, _backward_float64)


@cache
def load_kernel(name: str) -> tuple[int, Any]:
    """Return the address and the function of a kernel such as "forward_float32"."""
    return compile_kernel(next(entry for entry in _FORWARD_ENTRIES + _BACKWARD_ENTRIES if entry.__name__ == f"_{name}"))


def compile_kernel(entry: Any) -> tuple[int, Any]:
    """Compile a kernel, or load it from numba's cache on disk; return its address and function."""
    signature = types.void(types.CPointer(types.int64))
    try:
        address = cfunc(signature, cache=True)(entry).address
    except (RuntimeError, OSError):  # no writable folder or no space left: every process compiles
        address = cfunc(signature)(entry).address
    assert address is not None
    return address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
