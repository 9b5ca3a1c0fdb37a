"""The noise in one pass over memory on the CPU: the stream of `noiseprop.noise.kernels.philox`, by the loops of `compiled`."""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from noiseprop.noise.kernels import functorch as transforms
from noiseprop.noise.kernels import openmp as threads
from noiseprop.noise.kernels.philox import LANES

CHUNK = 16  # groups of eight samples whose part of sigma's gradient is summed in one go
available = find_spec("numba") is not None  # without it, all goes the pure-torch way
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


def usable(x: Tensor) -> bool:
    """Whether the fused kernels can work on x; the pure-torch path takes what they cannot."""
    return available and x.is_cpu and x.dtype in NAMES and not transforms.is_mapped_by_autograd(x)


def add_noise(
    x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int, *, out: Tensor | None = None
) -> Tensor:
    """``x + mu + sigma * eps`` with x's memory format, in a new tensor or `out`; sigma and mu broadcast to neurons."""
    x, channels = _dense(x)
    y = torch.empty_like(x) if out is None else out
    level = _vector(sigma, x, channels)
    mean = None if mu is None else _vector(mu, x, channels)
    _call("forward", x, y.data_ptr(), level.data_ptr(), 0 if mean is None else mean.data_ptr(), key, draws, channels)
    return y


def sigma_gradient(grad: Tensor, key: Tensor, draws: int) -> Tensor:
    """Eq. 3 for every neuron: the sum over the rows of ``grad * eps``, in float32 or float64."""
    grad, channels = _dense(grad)
    batch, neurons = grad.shape[0] // draws, grad.shape[1:]
    first = key.tolist()[-1]
    groups = draws * ((first + batch - 1) // LANES - first // LANES + 1)
    chunks = (groups + CHUNK - 1) // CHUNK
    memory = (*neurons[1:], channels) if channels else neurons
    parts = torch.empty(memory if chunks == 1 else (chunks, *memory), dtype=_wide(grad))
    _call("backward", grad, parts.data_ptr(), 0, 0, key, draws, channels)
    total = parts if chunks == 1 else torch.from_numpy(parts.numpy().sum(axis=0))  # numpy's order is fixed
    return total.movedim(-1, 0).contiguous() if channels else total


def sigma_adam(rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], *, settings: Sequence[float]) -> bool:
    """Eq. 7 in place for (sigma, gradient, h, v) of each parameter, in one call; False where they are not for a kernel.

    The settings are (beta 1, beta 2, lr / (1 - beta1^N), 1 / (1 - beta2^N), eps).
    """
    dtype = rows[0][0].dtype
    if not usable(rows[0][0]) or dtype not in (torch.float32, torch.float64):
        return False
    for row in rows:
        size = row[0].shape
        for t in row:
            if not (t.is_cpu and t.dtype == dtype and t.shape == size and t.is_contiguous()):
                return False  # torch's own operations take it, or say what does not fit
    table = [number for row in rows for number in (*(t.data_ptr() for t in row), row[0].numel())]
    pointers, numbers = (ctypes.c_int64 * len(table))(*table), (ctypes.c_double * 5)(*settings)
    arguments = (ctypes.c_int64 * 4)(0, len(rows), ctypes.addressof(pointers), ctypes.addressof(numbers))
    _kernel("adam", dtype)[1](ctypes.addressof(arguments))
    return True


def _dense(x: Tensor) -> tuple[Tensor, int]:
    """X in a memory layout that the kernels know, and the number of channels if these come last in it (or 0)."""
    if x.is_contiguous():
        return x, 0
    if memory_format(x) != torch.contiguous_format:
        return x, x.shape[1]
    return x.contiguous(), 0


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout in memory of ``x`` plus noise: x's own if it is contiguous or has its channels last."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def _vector(values: Tensor, x: Tensor, channels: int) -> Tensor:
    """One number per neuron, in the order of x's memory."""
    neurons, dtype = x.shape[1:], _wide(x)
    if values.shape != neurons:
        values = values.expand(neurons)
    if channels:
        values = values.movedim(0, -1)
    if values.dtype != dtype:
        values = values.to(dtype)
    return values if values.is_contiguous() else values.contiguous()


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _call(name: str, x: Tensor, out: int, sigma: int, mu: int, key: Tensor, draws: int, channels: int) -> None:
    rows, elements = x.shape[0], x.numel()
    if elements == 0:
        return
    address, function = _kernel(name, x.dtype)
    arguments = (ctypes.c_int64 * 10)(
        0, x.data_ptr(), out, sigma, mu, key.data_ptr(), draws, rows // draws, elements // rows, channels
    )
    threads.run(address, function, ctypes.addressof(arguments), elements)


@cache
def _kernel(name: str, dtype: torch.dtype) -> tuple[int, threads.Kernel]:
    from noiseprop.noise.kernels import numba_adam as compiled_adam  # numba takes its time to import
    from noiseprop.noise.kernels import numba_noise as compiled  # numba takes its time to import

    return (compiled_adam if name == "adam" else compiled).kernel(f"{name}_{NAMES[dtype]}")
