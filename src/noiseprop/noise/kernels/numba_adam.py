"""Eq. 7 for a list of tensors, compiled: one step of `noiseprop.noise.sigma_adam.SigmaAdam` in one call."""
# numba infers the types itself, and its intrinsics are called without their first argument:
# pyright: basic, reportCallIssue=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit, types

from noiseprop.noise.kernels.numba_noise import compile_kernel, pointer_to


@njit(fastmath={"contract"}, error_model="numpy")
def _run_adam(a: Any, number: Any) -> None:
    """Apply Eq. 7 to a list of tensors: rows of (sigma, gradient, h, v, size), and (b1, b2, lr / c1, 1 / c2, eps)."""
    rows = carray(pointer_to(a[2], types.int64), (a[1] * 5,))
    settings = carray(pointer_to(a[3], types.float64), (5,))
    b1, b2, rate, scale, eps = settings
    keep1, take1, keep2, take2 = number(b1), number(1 - b1), number(b2), number(1 - b2)
    rate_, scale_, eps_, infinity = number(rate), number(scale), number(eps), number(np.inf)
    for k in range(a[1]):
        n = rows[5 * k + 4]
        sigma = carray(pointer_to(rows[5 * k], number), (n,))
        gradient = carray(pointer_to(rows[5 * k + 1], number), (n,))
        h, v = carray(pointer_to(rows[5 * k + 2], number), (n,)), carray(pointer_to(rows[5 * k + 3], number), (n,))
        for j in range(n):
            g = gradient[j]
            h[j] = keep1 * h[j] + take1 * g
            v[j] = keep2 * v[j] + take2 * g * g
            root = np.sqrt(v[j] * scale_ + eps_)
            sigma[j] = abs(sigma[j] - rate_ * h[j] / (root if root != 0 else infinity))  # 0 / 0 leaves sigma


def _adam_float32(a: Any) -> None:
    _run_adam(a, types.float32)


def _adam_float64(a: Any) -> None:
    _run_adam(a, types.float64)


@cache
def load_kernel(name: str) -> tuple[int, Any]:
    """Return the address and the function of the kernel "adam_float32" or "adam_float64"."""
    return compile_kernel({"adam_float32": _adam_float32, "adam_float64": _adam_float64}[name])
