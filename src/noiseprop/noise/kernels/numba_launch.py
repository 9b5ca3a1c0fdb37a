"""Launch the compiled CPU kernels of `noiseprop.noise.kernels.numba_noise` and `numba_adam` on tensors."""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from noiseprop.noise.kernels import openmp
from noiseprop.noise.kernels.memory_layout import make_dense, noise_dtype
from noiseprop.noise.kernels.philox import GROUPS_PER_CHUNK, LANES

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


def add_noise_on_cpu(
    x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int, *, out: Tensor | None = None
) -> Tensor:
    """Return ``x + mu + sigma * eps`` in x's memory format, in a new tensor or in `out`."""
    x, channels_last = make_dense(x)
    y = torch.empty_like(x) if out is None else out
    level = _expand_to_neurons(sigma, x, channels_last)
    mean = None if mu is None else _expand_to_neurons(mu, x, channels_last)
    mean_address = 0 if mean is None else mean.data_ptr()
    _launch_kernel("forward", x, y.data_ptr(), level.data_ptr(), mean_address, key, draws, channels_last)
    return y


def compute_sigma_gradient_on_cpu(grad: Tensor, key: Tensor, draws: int) -> Tensor:
    """Return Eq. 3 for every neuron: ``grad * eps`` summed over the rows, in float32 or float64."""
    grad, channels_last = make_dense(grad)
    batch, neurons = grad.shape[0] // draws, grad.shape[1:]
    first = key.tolist()[-1]
    groups = draws * ((first + batch - 1) // LANES - first // LANES + 1)
    chunks = (groups + GROUPS_PER_CHUNK - 1) // GROUPS_PER_CHUNK
    memory = (*neurons[1:], neurons[0]) if channels_last else neurons
    parts = torch.empty(memory if chunks == 1 else (chunks, *memory), dtype=noise_dtype(grad))
    _launch_kernel("backward", grad, parts.data_ptr(), 0, 0, key, draws, channels_last)
    total = parts if chunks == 1 else torch.from_numpy(parts.numpy().sum(axis=0))  # numpy's order is fixed
    return total.movedim(-1, 0).contiguous() if channels_last else total


def step_sigma_adam_on_cpu(rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], *, settings: Sequence[float]) -> bool:
    """Apply Eq. 7 in place to (sigma, gradient, h, v) of each parameter, in one call.

    Args:
        rows: the tensors of each parameter.
        settings: beta 1, beta 2, lr / (1 - beta1^N), 1 / (1 - beta2^N), eps.

    Returns:
        False where the tensors differ in shape, dtype or layout, which the kernel cannot process; nothing is changed.
    """
    dtype = rows[0][0].dtype
    if dtype not in (torch.float32, torch.float64):
        return False
    for row in rows:
        size = row[0].shape
        for t in row:
            if not (t.is_cpu and t.dtype == dtype and t.shape == size and t.is_contiguous()):
                return False
    table = [number for row in rows for number in (*(t.data_ptr() for t in row), row[0].numel())]
    pointers, numbers = (ctypes.c_int64 * len(table))(*table), (ctypes.c_double * 5)(*settings)
    arguments = (ctypes.c_int64 * 4)(0, len(rows), ctypes.addressof(pointers), ctypes.addressof(numbers))
    _load_kernel("adam", dtype)[1](ctypes.addressof(arguments))
    return True


def _expand_to_neurons(values: Tensor, x: Tensor, channels_last: bool) -> Tensor:
    """Return one number per neuron, in the order of x's memory."""
    neurons, dtype = x.shape[1:], noise_dtype(x)
    if values.shape != neurons:
        values = values.expand(neurons)
    if channels_last:
        values = values.movedim(0, -1)
    if values.dtype != dtype:
        values = values.to(dtype)
    return values if values.is_contiguous() else values.contiguous()


def _launch_kernel(
    name: str, x: Tensor, out: int, sigma: int, mu: int, key: Tensor, draws: int, channels_last: bool
) -> None:
    rows, elements = x.shape[0], x.numel()
    if elements == 0:
        return
    address, function = _load_kernel(name, x.dtype)
    arguments = (ctypes.c_int64 * 10)(
        0,
        x.data_ptr(),
        out,
        sigma,
        mu,
        key.data_ptr(),
        draws,
        rows // draws,
        elements // rows,
        x.shape[1] if channels_last else 0,
    )
    openmp.run_on_torch_threads(address, function, ctypes.addressof(arguments), elements)


@cache
def _load_kernel(name: str, dtype: torch.dtype) -> tuple[int, openmp.KernelFunction]:
    from noiseprop.noise.kernels import numba_adam, numba_noise  # numba takes about a second to import

    return (numba_adam.load_kernel if name == "adam" else numba_noise.load_kernel)(f"{name}_{DTYPE_NAMES[dtype]}")
