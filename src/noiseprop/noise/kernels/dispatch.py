"""Choice of the noise implementation for a tensor: numba on CPUs, Triton on GPUs, plain torch elsewhere."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noiseprop.noise.kernels import functorch as transforms
from noiseprop.noise.kernels import numba_launch
from noiseprop.noise.kernels.memory_layout import select_memory_format
from noiseprop.noise.kernels.philox import standard_normal

Backend = Literal["numba", "torch"]
has_numba = find_spec("numba") is not None


def select_backend(x: Tensor) -> Backend:
    """Return the implementation that adds noise to x, by its device and dtype."""
    if has_numba and x.is_cpu and x.dtype in numba_launch.DTYPE_NAMES and not transforms.is_mapped_by_autograd(x):
        return "numba"
    return "torch"


def add_gaussian_noise(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int) -> Tensor:
    """Return ``x + mu + sigma * eps`` (Eq. 1) in x's memory format; sigma and mu broadcast to the neurons."""
    if select_backend(x) == "numba":
        return numba_launch.add_noise_on_cpu(x, sigma, mu, key, draws)
    eps = _draw_eps_by_torch(x, key, draws)
    y = x + sigma * eps if mu is None else x + (mu + sigma * eps)
    return y.to(x.dtype).contiguous(memory_format=select_memory_format(x))


def compute_sigma_gradient(grad: Tensor, key: Tensor, shape: Sequence[int], draws: int) -> Tensor:
    """Return Eq. 3, ``grad * eps`` summed over the batch and the axes that a sigma of this shape is shared over."""
    if select_backend(grad) == "numba":
        return sum_to_shape(numba_launch.compute_sigma_gradient_on_cpu(grad, key, draws), shape)
    return sum_to_shape((grad * _draw_eps_by_torch(grad, key, draws)).sum(0), shape)


def sum_to_shape(total: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over the axes that were broadcast; on the CPU in numpy's order, the same for any number of threads."""
    if total.shape == tuple(shape):
        return total
    lead = total.dim() - len(shape)
    axes = tuple(i for i in range(total.dim()) if i < lead or (shape[i - lead] == 1 and total.shape[i] != 1))
    if select_backend(total) == "numba" and type(total) is Tensor and not total.requires_grad:
        return torch.from_numpy(np.asarray(total.numpy().sum(axis=axes))).view(tuple(shape))
    return total.sum(axes).view(tuple(shape))


def step_sigma_adam(rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], *, settings: Sequence[float]) -> bool:
    """Apply Eq. 7 to all parameters in one kernel; return False where no kernel can (see `numba_launch`)."""
    return select_backend(rows[0][0]) == "numba" and numba_launch.step_sigma_adam_on_cpu(rows, settings=settings)


def _draw_eps_by_torch(x: Tensor, key: Tensor, draws: int) -> Tensor:
    """Draw x's noise from its key by plain torch operations, in float32, or float64 for float64."""
    eps = standard_normal(key, draws, x.shape[0] // draws, math.prod(x.shape[1:])).view(x.shape)
    return eps.double() if x.dtype == torch.float64 else eps
