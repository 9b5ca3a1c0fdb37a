"""Gaussian noise as an operation of autograd: Eq. 1 forward, Eq. 3 backward."""
# pyright: reportPrivateUsage=false

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noiseprop.errors import InputError
from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.kernels import functorch as transforms
from noiseprop.noise.kernels.memory_layout import noise_dtype, select_memory_format

KEY_LENGTH = 5  # seed, pass, layer, call, global index of the first sample


def gaussian_noise(
    x: Tensor,
    sigma: Tensor | float,
    *,
    mu: Tensor | float | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    draws: int = 1,
) -> Tensor:
    """Add independent Gaussian noise to every neuron: ``y = x + mu + sigma * eps`` with ``eps ~ N(0, 1)``.

    eps is independent for every element of every sample, and a pure function of the key (see
    `noiseprop.noise.kernels.philox`). The gradient of sigma is Eq. 3, ``sum over the batch of grad * eps``, for any
    sign of sigma; x receives the gradient unchanged. The backward pass draws eps again, so no tensor of x's size is
    stored.

    Args:
        x: pre-activations (B, *neurons), float32, bfloat16, float16 or float64.
        sigma: standard deviations, in units of x: one number, or a tensor broadcastable to (*neurons). Eq. 3 is summed
            in float32 or wider for any x; torch then casts the gradient to the dtype of sigma, so a learned sigma
            should be float32 or wider, as in `NeuronNoise`.
        mu: means, in units of x, as one number or a tensor; 0 if omitted.
        key: int64 tensor of up to five numbers (seed, pass, layer, call, global index of the first sample);
            missing numbers are 0. If omitted, a seed is drawn from `generator`.
        generator: draws the seed if `key` is omitted; torch's global generator if omitted.
        draws: number of draws of one batch that x holds, one after another; draw k uses the noise of pass + k.

    Returns:
        A new tensor with x's shape and dtype.

    Raises:
        InputError: x is not floating point, a shape does not fit, or sigma is neither a tensor nor a number.

    Examples:
        >>> x, sigma = torch.zeros(2, 3), torch.ones(3)
        >>> y = gaussian_noise(x, sigma, key=torch.tensor([7]))
        >>> torch.equal(y, gaussian_noise(x, sigma, key=torch.tensor([7])))
        True
        >>> torch.equal(y[0], y[1])
        False

    Source: Xiao, Zhang and Peng (2021), Eq. 1 and Theorem 1 (Eq. 3).
    """
    if not isinstance(sigma, Tensor):
        sigma = _make_level("sigma", sigma, x)
    if mu is not None and not isinstance(mu, Tensor):
        mu = _make_level("mu", mu, x)
    _check_noise_arguments(x, sigma, mu, draws)
    key = _complete_key(key, generator, x)
    if not torch.compiler.is_compiling():
        if transforms.are_transforms_active():
            return transforms.gaussian_noise(x, sigma, mu, key, draws)
        if type(x) in _EAGER_TYPES:
            return _apply_noise(x, sigma, mu, key, draws)  # takes half as long as the dispatcher
    return torch.ops.noiseprop.gaussian_noise(x, sigma, mu, key, draws)


def copy_key(key: Tensor) -> Tensor:
    """Return a copy of a key that is about to be advanced.

    For torch.compile the copy is an opaque op. Otherwise the compiled backward pass would recompute the clone from the
    key that the forward pass has advanced.
    """
    return torch.ops.noiseprop.copy_key(key) if torch.compiler.is_compiling() else key.clone()


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, sigma, mu, key, ctx.draws = inputs
    ctx.save_for_backward(key)
    ctx.sigma_shape, ctx.mu_shape = sigma.shape, None if mu is None else mu.shape


def _compute_noise_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    to_sigma = to_mu = None
    if ctx.needs_input_grad[1]:
        traced = type(grad) not in _EAGER_TYPES or transforms.are_transforms_active()
        differentiable = torch.is_grad_enabled() or traced
        eq_3 = torch.ops.noiseprop.sigma_gradient if differentiable else kernels.compute_sigma_gradient
        to_sigma = eq_3(grad, key, ctx.sigma_shape, ctx.draws)
    if ctx.needs_input_grad[2]:
        to_mu = kernels.compute_mu_gradient(grad, ctx.mu_shape)
    return grad, to_sigma, to_mu, None, None


class _GaussianNoiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor, mu: Tensor | None, key: Tensor, draws: int) -> Tensor:
        _save_inputs(ctx, (x, sigma, mu, key, draws), None)
        return kernels.add_gaussian_noise(x, sigma, mu, key, draws)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _compute_noise_gradients(ctx, grad)


# Function.apply without its check for wrappers of torch.func, which gaussian_noise has made already
_apply_noise: Any = super(torch.autograd.Function, _GaussianNoiseFunction).apply  # pyright: ignore[reportAttributeAccessIssue]


def _save_gradient_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, key, _, ctx.draws = inputs
    ctx.save_for_backward(key)
    ctx.like = {"size": grad.shape, "dtype": grad.dtype, "device": grad.device}


def _compute_second_gradients(ctx: Any, gradgrad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of Eq. 3, which is linear in grad: eps times gradgrad, computed as noise added to zeros."""
    (key,) = ctx.saved_tensors
    return gaussian_noise(torch.zeros(**ctx.like), gradgrad, key=key, draws=ctx.draws), None, None, None


def _register_operations() -> torch.library.Library:
    """Register one functional op per direction, which is opaque to torch.compile and torch.export."""
    library = torch.library.Library("noiseprop", "DEF")
    library.define("gaussian_noise(Tensor x, Tensor sigma, Tensor? mu, Tensor key, int draws) -> Tensor")
    library.define("copy_key(Tensor key) -> Tensor")
    library.define("sigma_gradient(Tensor grad, Tensor key, SymInt[] shape, int draws) -> Tensor")
    library.impl("gaussian_noise", kernels.add_gaussian_noise, "CompositeExplicitAutograd")
    library.impl("copy_key", torch.clone, "CompositeExplicitAutograd")
    library.impl("sigma_gradient", kernels.compute_sigma_gradient, "CompositeExplicitAutograd")
    torch.library.register_fake(
        "noiseprop::gaussian_noise",
        lambda x, *rest: torch.empty_like(x, memory_format=select_memory_format(x)),
        lib=library,
    )
    torch.library.register_fake("noiseprop::copy_key", torch.empty_like, lib=library)
    torch.library.register_fake(
        "noiseprop::sigma_gradient",
        lambda grad, key, shape, draws: grad.new_empty(shape, dtype=noise_dtype(grad)),
        lib=library,
    )
    torch.library.register_autograd(
        "noiseprop::gaussian_noise", _compute_noise_gradients, setup_context=_save_inputs, lib=library
    )
    torch.library.register_autograd(
        "noiseprop::sigma_gradient", _compute_second_gradients, setup_context=_save_gradient_inputs, lib=library
    )
    transforms.register_vmap_rules(library)
    return library


_LIBRARY = _register_operations()
_EAGER_TYPES = (Tensor, torch.nn.Parameter)


def _complete_key(key: Tensor | None, generator: torch.Generator | None, x: Tensor) -> Tensor:
    if key is None:
        device = None if generator is None else generator.device
        key = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=device)
    elif key.dtype != torch.int64 or key.dim() != 1 or key.numel() > KEY_LENGTH:
        raise InputError(
            f"gaussian_noise got a key of shape {tuple(key.shape)} and dtype {key.dtype}; pass a one-dimensional "
            f"int64 tensor of at most {KEY_LENGTH} numbers: (seed, pass, layer, call, first sample)"
        )
    missing = KEY_LENGTH - key.numel()
    if missing:
        key = torch.cat([key, key.new_zeros(missing)])
    if not (key.is_cpu and x.is_cpu):
        key = key.to(x.device)
    return key if key.is_contiguous() else key.contiguous()


def _make_level(name: str, value: Any, x: Tensor) -> Tensor:
    """Return one number for all neurons as a tensor."""
    if not isinstance(value, int | float):
        raise InputError(
            f"gaussian_noise got a {type(value).__name__} for {name}; pass a tensor, or one number for all neurons"
        )
    return torch.full((), float(value), dtype=noise_dtype(x), device=x.device)


def _check_noise_arguments(x: Tensor, sigma: Tensor, mu: Tensor | None, draws: int) -> None:
    if not x.is_floating_point() or x.dim() == 0:
        raise InputError(
            f"gaussian_noise expects a floating-point tensor (B, *neurons), got {x.dtype} of shape {tuple(x.shape)}"
        )
    _check_shape("sigma", sigma, x)
    if mu is not None:
        _check_shape("mu", mu, x)
    if draws != 1 and (draws < 1 or x.shape[0] % draws):
        raise InputError(f"x holds {x.shape[0]} rows, which are not {draws} draws of one batch; repeat the batch first")


def _check_shape(name: str, values: Tensor, x: Tensor) -> None:
    shape, neurons = values.shape, x.shape[1:]
    if values.device != x.device:
        raise InputError(f"{name} is on {values.device}, but x on {x.device}; move both to one device")
    if shape != neurons and not _can_broadcast(shape, neurons):
        raise InputError(
            f"{name} has shape {tuple(shape)}, which does not broadcast to the neurons {tuple(neurons)} of x; "
            f"use the shape {tuple(neurons)}, with 1 for each axis that shares one value"
        )


def _can_broadcast(shape: Sequence[int], neurons: Sequence[int]) -> bool:
    lead = len(neurons) - len(shape)
    return lead >= 0 and all(s in (1, n) for s, n in zip(shape, neurons[lead:], strict=True))
