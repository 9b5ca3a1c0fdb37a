"""Noise under torch.func: grad, jvp and vmap, whose `randomness` decides whether lanes share their noise."""

# functorch keeps its transforms private:
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noiseprop.errors import InputError
from noiseprop.noise.kernels.memory_layout import noise_dtype

_functorch: Any = torch._C._functorch
are_transforms_active = torch._C._are_functorch_transforms_active
# torch.autograd.grad(..., is_grads_batched=True) uses another vmap:
is_mapped_by_autograd = _functorch.is_legacy_batchedtensor


def gaussian_noise(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int) -> Tensor:
    """Compute Eq. 1 by torch's operators, which have all derivatives; only eps comes from the key."""
    _check_lanes(x, sigma, mu, key)
    zeros = torch.zeros_like(x, dtype=noise_dtype(x)) + torch.zeros_like(sigma)  # x's shape, and the lanes of both
    eps = torch.ops.noiseprop.gaussian_noise(zeros, zeros.new_ones(()), None, key, draws)
    shift = sigma * eps if mu is None else mu + sigma * eps
    return (x + shift).to(x.dtype)


def register_vmap_rules(library: torch.library.Library) -> None:
    """Register how noiseprop's two operators treat a mapped axis."""
    torch.library.register_vmap("noiseprop::gaussian_noise", _map_gaussian_noise, lib=library)
    torch.library.register_vmap("noiseprop::sigma_gradient", _map_sigma_gradient, lib=library)


def advance_pass(key: Tensor, one_pass: Tensor, passes: int) -> None:
    """Add to the number of a stream's next pass, although transforms forbid in-place changes of captured tensors."""
    if _functorch.is_functorch_wrapped_tensor(key):
        key.add_(one_pass, alpha=passes)  # the key is an input, as one of the model's buffers
    else:
        with torch._C._DisableFuncTorch():
            key.add_(one_pass, alpha=passes)


def _check_lanes(x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor) -> None:
    """Check that every surrounding vmap declares its randomness and can provide it."""
    for interpreter in _functorch.get_interpreter_stack() or ():
        if interpreter.key() != _functorch.TransformType.Vmap or _is_mapped(key, interpreter.level()):
            continue
        randomness = _functorch.CVmapInterpreterPtr(interpreter).randomness()
        if randomness == _functorch.RandomnessType.Error:
            raise InputError(
                "torch.vmap reached noise with randomness='error', its default; pass randomness='different' to give "
                "each lane its own noise, or randomness='same' to share it"
            )
        mapped = any(_is_mapped(t, interpreter.level()) for t in (x, sigma, mu) if t is not None)
        if randomness == _functorch.RandomnessType.Different and not mapped:
            raise InputError(
                "torch.vmap cannot give each lane its own noise here, since no input of this layer differs between "
                "lanes; for several draws use sampling(model, draws=K), for shared noise randomness='same'"
            )


def _is_mapped(x: Tensor, level: int) -> bool:
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x) and _functorch.maybe_get_level(x) == level:
            return True
        x = _functorch.get_unwrapped(x)
    return False


def _map_gaussian_noise(
    info: Any, in_dims: Sequence[int | None], x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int
) -> tuple[Tensor, int]:
    """Compute Eq. 1 on x (V, B, *neurons); the samples of lane v follow those of lane v - 1."""
    x, sigma, keys = (_move_lanes_first(t, in_dims[i], info) for i, t in ((0, x), (1, sigma), (3, key)))
    lanes, rows, neurons = x.shape[0], x.shape[1], x.shape[2:]
    if in_dims[3] is not None:
        eps = torch.stack([_draw_eps((rows, *neurons), own, draws, x) for own in keys.unbind(0)])
    elif info.randomness == "same":
        eps = _draw_eps((rows, *neurons), key, draws, x)
    else:
        eps = _draw_eps((lanes * rows, *neurons), key, draws, x).view(draws, lanes, rows // draws, math.prod(neurons))
        eps = eps.transpose(0, 1).reshape(x.shape)
    shift = _broadcast_over_rows(sigma, x) * eps
    if mu is not None:
        shift = _broadcast_over_rows(_move_lanes_first(mu, in_dims[2], info), x) + shift
    return (x + shift).to(x.dtype), 0


def _map_sigma_gradient(
    info: Any, in_dims: Sequence[int | None], grad: Tensor, key: Tensor, shape: Sequence[int], draws: int
) -> tuple[Tensor, int]:
    """Compute Eq. 3 for several gradients (V, B, *neurons) of the same noise."""
    grad, keys = _move_lanes_first(grad, in_dims[0], info), _move_lanes_first(key, in_dims[1], info)
    lane_keys = keys[:1] if in_dims[1] is None else keys.unbind(0)
    eps = torch.stack([_draw_eps(grad.shape[1:], lane_key, draws, grad) for lane_key in lane_keys])
    total = (grad * eps).sum(1)  # (V, *neurons)
    lead = [1] * (total.dim() - 1 - len(shape))
    return total.sum_to_size(len(total), *lead, *shape).view(len(total), *shape), 0


def _draw_eps(shape: Sequence[int], key: Tensor, draws: int, like: Tensor) -> Tensor:
    zeros = torch.zeros(*shape, dtype=noise_dtype(like), device=like.device)
    return torch.ops.noiseprop.gaussian_noise(zeros, zeros.new_ones(()), None, key, draws)


def _move_lanes_first(x: Tensor, dim: int | None, info: Any) -> Tensor:
    return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


def _broadcast_over_rows(values: Tensor, x: Tensor) -> Tensor:
    """View (V, *shape) as (V, 1, …, *shape), which broadcasts to x (V, B, *neurons)."""
    return values.view(len(values), *[1] * (x.dim() - values.dim()), *values.shape[1:])
