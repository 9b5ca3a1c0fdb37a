"""Memory layout of a model during training: channels_last where the model allows it, restored afterwards."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def find_memory_format(model: nn.Module) -> torch.memory_format:
    """Return the layout of a model's convolution weights: channels_last if one of them can be nothing else."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    if any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights):
        return torch.channels_last
    return torch.contiguous_format


@contextmanager
def use_memory_format(model: nn.Module, memory_format: torch.memory_format) -> Generator[None]:
    """Change the layout of a model's four-dimensional tensors for a block, and restore each of them at its end.

    Values stay as they are. Tensors that share memory with others keep their layout.
    """
    tensors = _list_convertible_tensors(model)
    strides = [tensor.stride() for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.to(memory_format=memory_format)  # sets the strides of single channels, too
    try:
        yield
    finally:
        for tensor, stride in zip(tensors, strides, strict=True):
            if tensor.stride() != stride:
                tensor.data = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(
                    tensor.data
                )


def _list_convertible_tensors(model: nn.Module) -> list[Tensor]:
    tensors = [*model.parameters(), *model.buffers()]
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    return [tensor for tensor in tensors if tensor.dim() == 4 and users[tensor.untyped_storage().data_ptr()] == 1]
