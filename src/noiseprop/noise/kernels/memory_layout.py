"""Memory layouts that the fused kernels read and write, and the precision they compute in."""

from collections.abc import Sequence

import torch
from torch import Tensor


def noise_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which noise is computed and gradients are summed: float64 for float64, otherwise float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def select_memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of ``x`` plus noise: channels last where x has it, contiguous otherwise."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def make_dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return x, or a contiguous copy where its layout has gaps or another order, and whether channels come last."""
    if x.is_contiguous():
        return x, False
    if select_memory_format(x) != torch.contiguous_format:
        return x, True
    return x.contiguous(), False


def list_shared_axes(neurons: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """List the axes of the neurons over which a sigma or mu of this shape holds one value."""
    lead = len(neurons) - len(shape)
    return tuple(i for i in range(len(neurons)) if i < lead or (shape[i - lead] == 1 and neurons[i] != 1))
