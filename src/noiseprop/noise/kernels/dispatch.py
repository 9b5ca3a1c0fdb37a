"""Choice of the noise implementation for a tensor: numba on CPUs, Triton on GPUs, plain torch elsewhere."""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noiseprop.errors import NoisepropWarning
from noiseprop.noise.kernels import functorch as transforms
from noiseprop.noise.kernels import numba_launch
from noiseprop.noise.kernels.memory_layout import list_shared_axes, noise_dtype, select_memory_format
from noiseprop.noise.kernels.philox import standard_normal

Backend = Literal["numba", "triton", "torch"]
has_numba = find_spec("numba") is not None
has_triton = find_spec("triton") is not None
_TRITON_DEVICES = ("cuda", "xpu")  # torch calls ROCm's devices cuda, too
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def select_backend(x: Tensor) -> Backend:
    """Return the implementation that adds noise to x, by its device and dtype."""
    if transforms.is_mapped_by_autograd(x):
        return "torch"
    if x.is_cpu:
        return "numba" if has_numba and x.dtype in numba_launch.DTYPE_NAMES else "torch"
    return "triton" if x.dtype in _TRITON_DTYPES and can_run_triton(x.device) else "torch"


@cache
def can_run_triton(device: torch.device) -> bool:
    """Return whether Triton is installed and generates code for a device."""
    if not has_triton or device.type not in _TRITON_DEVICES:
        return False
    if device.type == "xpu" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (7, 0)


def add_gaussian_noise(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int) -> Tensor:
    """Return ``x + mu + sigma * eps`` (Eq. 1) in x's memory format; sigma and mu broadcast to the neurons."""
    backend = select_backend(x)
    if backend == "numba":
        return numba_launch.add_noise_on_cpu(x, sigma, mu, key, draws)
    if backend == "triton":
        from noiseprop.noise.kernels import triton_noise  # optional, and slow to import

        return triton_noise.add_noise_on_gpu(x, sigma, mu, key, draws)
    _warn_without_kernel(x.device.type)
    eps = _draw_eps_by_torch(x, key, draws)
    y = x + sigma * eps if mu is None else x + (mu + sigma * eps)
    return y.to(x.dtype).contiguous(memory_format=select_memory_format(x))


def compute_sigma_gradient(grad: Tensor, key: Tensor, shape: Sequence[int], draws: int) -> Tensor:
    """Return Eq. 3, ``grad * eps`` summed over the batch and the axes that a sigma of this shape is shared over."""
    backend = select_backend(grad)
    if backend == "numba":
        return _sum_shared_axes(numba_launch.compute_sigma_gradient_on_cpu(grad, key, draws), shape)
    if backend == "triton":
        from noiseprop.noise.kernels import triton_noise

        return triton_noise.compute_sigma_gradient_on_gpu(grad, key, shape, draws)
    return _sum_shared_axes((grad * _draw_eps_by_torch(grad, key, draws)).sum(0), shape)


def compute_mu_gradient(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient for a mu of this shape: grad summed over the batch and the axes that mu is shared over."""
    if grad.is_cpu:
        return _sum_shared_axes(grad.sum(0, dtype=noise_dtype(grad)), shape)
    axes = (0, *(axis + 1 for axis in list_shared_axes(grad.shape[1:], shape)))
    return grad.sum(axes, dtype=noise_dtype(grad)).view(tuple(shape))


def step_sigma_adam(rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], *, settings: Sequence[float]) -> bool:
    """Apply Eq. 7 to all parameters in one kernel; return False where no kernel can (see `numba_launch`)."""
    return select_backend(rows[0][0]) == "numba" and numba_launch.step_sigma_adam_on_cpu(rows, settings=settings)


def _sum_shared_axes(total: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over the axes that were broadcast; on the CPU in numpy's order, the same for any number of threads."""
    if total.shape == tuple(shape):
        return total
    axes = list_shared_axes(total.shape, shape)
    if select_backend(total) == "numba" and type(total) is Tensor and not total.requires_grad:
        return torch.from_numpy(np.asarray(total.numpy().sum(axis=axes))).view(tuple(shape))
    return total.sum(axes).view(tuple(shape))


@cache
def _warn_without_kernel(device: str) -> None:
    """Warn once per process where noise has no kernel for a type of device."""
    if device == "cpu" and has_numba:
        return  # only this dtype or transform has none
    remedy = {"cpu": "; install numba", "cuda": "; install triton", "xpu": "; install triton"}.get(device, "")
    warnings.warn(
        f"noise on {device} uses plain torch operations, which take many times as long as its kernels{remedy}",
        NoisepropWarning,
        stacklevel=2,
    )


def _draw_eps_by_torch(x: Tensor, key: Tensor, draws: int) -> Tensor:
    """Draw x's noise from its key by plain torch operations, in float32, or float64 for float64."""
    eps = standard_normal(key, draws, x.shape[0] // draws, math.prod(x.shape[1:])).view(x.shape)
    return eps.double() if x.dtype == torch.float64 else eps
