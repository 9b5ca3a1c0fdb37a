"""Noise under torch.func: grad, jvp, and vmap, where lanes have noise of their own or all the same, as vmap is told."""

# functorch shows its transforms only to its own parts:
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noiseprop.errors import InputError

_functorch: Any = torch._C._functorch
active = torch._C._are_functorch_transforms_active
is_mapped_by_autograd = (
    _functorch.is_legacy_batchedtensor
)  # torch.autograd.grad(..., is_grads_batched=True) has its own


def gaussian_noise(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int) -> Tensor:
    """Eq. 1 in torch's own operators, which know all their derivatives; only eps comes from the key."""
    _check_lanes(x, sigma, mu, key)
    zeros = torch.zeros_like(x, dtype=_wide(x)) + torch.zeros_like(sigma)  # x's shape, and a lane for each of either
    eps = torch.ops.noiseprop.gaussian_noise(zeros, zeros.new_ones(()), None, key, draws)
    shift = sigma * eps if mu is None else mu + sigma * eps
    return (x + shift).to(x.dtype)


def register(library: torch.library.Library) -> None:
    """Tell vmap what noiseprop's two operators do with a mapped axis."""
    torch.library.register_vmap("noiseprop::gaussian_noise", _map_noise, lib=library)
    torch.library.register_vmap("noiseprop::sigma_gradient", _map_sigma_gradient, lib=library)


def advance(key: Tensor, one_pass: Tensor, passes: int) -> None:
    """Add to the number of a stream's next pass, although a transform forbids to change what it was not given."""
    if _functorch.is_functorch_wrapped_tensor(key):
        key.add_(one_pass, alpha=passes)  # it was given, as one of the model's buffers
    else:
        with torch._C._DisableFuncTorch():
            key.add_(one_pass, alpha=passes)


def _check_lanes(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor) -> None:
    """Refuse a vmap that does not say what to do with randomness, or cannot do it."""
    for interpreter in _functorch.get_interpreter_stack() or ():
        if interpreter.key() != _functorch.TransformType.Vmap or _is_mapped(key, interpreter.level()):
            continue
        randomness = _functorch.CVmapInterpreterPtr(interpreter).randomness()
        if randomness == _functorch.RandomnessType.Error:
            raise InputError(
                "torch.vmap reached noise without being told about randomness; pass randomness='different' to give "
                "each lane its own noise, or randomness='same'"
            )
        mapped = any(_is_mapped(t, interpreter.level()) for t in (x, sigma, mu) if t is not None)
        if randomness == _functorch.RandomnessType.Different and not mapped:
            raise InputError(
                "torch.vmap cannot give each lane its own noise here, since nothing that reaches this layer differs "
                "between lanes; for several draws use sampling(model, draws=K), for shared noise randomness='same'"
            )


def _is_mapped(x: Tensor, level: int) -> bool:
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x) and _functorch.maybe_get_level(x) == level:
            return True
        x = _functorch.get_unwrapped(x)
    return False


def _map_noise(
    info: Any, in_dims: Sequence[int | None], x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int
) -> tuple[Tensor, int]:
    """Eq. 1 on x (V, B, *neurons): the samples of lane v follow those of lane v - 1."""
    x, sigma, keys = (_lanes_first(t, in_dims[i], info) for i, t in ((0, x), (1, sigma), (3, key)))
    lanes, rows, neurons = x.shape[0], x.shape[1], x.shape[2:]
    if in_dims[3] is not None:
        eps = torch.stack([_eps((rows, *neurons), own, draws, x) for own in keys.unbind(0)])
    elif info.randomness == "same":
        eps = _eps((rows, *neurons), key, draws, x)
    else:
        eps = _eps((lanes * rows, *neurons), key, draws, x).view(draws, lanes, rows // draws, math.prod(neurons))
        eps = eps.transpose(0, 1).reshape(x.shape)
    shift = _over_rows(sigma, x) * eps
    if mu is not None:
        shift = _over_rows(_lanes_first(mu, in_dims[2], info), x) + shift
    return (x + shift).to(x.dtype), 0


def _map_sigma_gradient(
    info: Any, in_dims: Sequence[int | None], grad: Tensor, key: Tensor, shape: Sequence[int], draws: int
) -> tuple[Tensor, int]:
    """Eq. 3 for several gradients (V, B, *neurons) that came back through the same noise."""
    grad, keys = _lanes_first(grad, in_dims[0], info), _lanes_first(key, in_dims[1], info)
    eps = [_eps(grad.shape[1:], own, draws, grad) for own in (keys.unbind(0) if in_dims[1] is not None else keys[:1])]
    total = (grad * torch.stack(eps)).sum(1)  # (V, *neurons)
    lead = [1] * (total.dim() - 1 - len(shape))
    return total.sum_to_size(len(total), *lead, *shape).view(len(total), *shape), 0


def _eps(shape: Sequence[int], key: Tensor, draws: int, like: Tensor) -> Tensor:
    zeros = torch.zeros(*shape, dtype=_wide(like), device=like.device)
    return torch.ops.noiseprop.gaussian_noise(zeros, zeros.new_ones(()), None, key, draws)


def _lanes_first(x: Tensor, dim: int | None, info: Any) -> Tensor:
    return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


def _over_rows(values: Tensor, x: Tensor) -> Tensor:
    """(V, *shape) as (V, 1, …, *shape), which broadcasts to x (V, B, *neurons)."""
    return values.view(len(values), *[1] * (x.dim() - values.dim()), *values.shape[1:])


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
