"""``SigmaAdam``: Eq. 7, and the split of a model's parameters between the two optimizers."""

# torch names its foreach operations as private ones:
# pyright: reportPrivateUsage=false

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError, NoisepropError
from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.stream import find_sources

_Row = tuple[Tensor, Tensor, Tensor, Tensor]  # sigma, gradient, h, v
_Tensors = list[Tensor] | tuple[Tensor, ...]


class SigmaAdam(torch.optim.Optimizer):
    """Adam for noise levels, exactly as in Eq. 7.

        h <- b1 h + (1 - b1) g             v <- b2 v + (1 - b2) g^2
        sigma <- | sigma - lr * h / (1 - b1^N) / sqrt(v / (1 - b2^N) + eps) |

    It differs from `torch.optim.Adam` in two ways. eps is inside the root, where 1e-8 limits the root to at least 1e-4,
    and the updated sigma is replaced by its absolute value. Weight decay is not supported. With ``eps=0``, an entry
    stays where the root is 0, that is until its first gradient other than 0.

    Args:
        params: noise levels, `sigmas(model)`.
        lr: step size, in units of sigma; a tensor requires `capturable`.
        betas: decay rates of the two running means.
        eps: added to v inside the root, in units of the gradient squared.
        capturable: whether the step counts are tensors on the device, so that a CUDA graph can capture `step` after at
            least one step outside it. Under `torch.amp.GradScaler`, `step` then skips overflows without waiting for
            the device.

    Raises:
        InputError: lr or eps is below 0, a beta is outside [0, 1), or the list of noise levels is empty.

    Examples:
        >>> sigma = torch.tensor([0.5, 0.0004], requires_grad=True)
        >>> sigma.grad = torch.tensor([2.0, 2.0])
        >>> SigmaAdam([sigma], lr=1e-3).step()
        >>> sigma.detach()  # a full step down, and one that crosses 0
        tensor([0.4990, 0.0006])

    Source: Xiao, Zhang and Peng (2021), Eq. 7.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        capturable: bool = False,
    ) -> None:
        groups: Any = params if isinstance(params, Tensor) else list(params)  # torch rejects a tensor
        if not isinstance(groups, Tensor) and all(isinstance(g, dict) and not g["params"] for g in groups):
            raise InputError(
                "SigmaAdam got no sigma; call add_noise(model, learn=True) before sigmas(model), as a model without "
                "learned noise has none"
            )
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "capturable": capturable})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of noise levels, as in torch's optimizers; its settings default to those of the optimizer."""
        _check_settings(**{key: param_group.get(key, default) for key, default in self.defaults.items()})
        super().add_param_group(param_group)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Ask GradScaler for `grad_scale` and `found_inf` on the device, instead of skipping steps on the host."""
        return all(group["capturable"] for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every sigma that has a gradient.

        Args:
            closure: computes the loss and its gradients again before the update.

        Returns:
            The closure's result.

        Raises:
            NoisepropError: a CUDA graph captures the step without `capturable`, or captures the first one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            levels = [sigma for sigma in group["params"] if sigma.grad is not None]
            if levels and _is_captured(levels[0]):
                self._check_capture(levels, is_capturable=group["capturable"])
            if group["capturable"]:
                self._step_on_device(levels, group)
            else:
                self._step_on_host(levels, group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients like torch's method, which takes as long as a noise layer of a small network."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for sigma in group["params"]:
                sigma.grad = None

    def _step_on_host(self, levels: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Apply Eq. 7 with step counts that are Python numbers."""
        by_step: dict[int, list[_Row]] = {}
        for sigma in levels:
            state = self._prepare_state(sigma)
            state["step"] = step = int(state["step"]) + 1
            by_step.setdefault(step, []).append(_make_row(sigma, state))
        for step, rows in by_step.items():
            _update_with_host_count(rows, step, group)

    def _step_on_device(self, levels: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Apply Eq. 7 with step counts that are tensors; skip the update where GradScaler found an overflow."""
        by_device: dict[torch.device, tuple[list[_Row], list[Tensor]]] = {}
        for sigma in levels:
            state = self._prepare_state(sigma)
            if not isinstance(state["step"], Tensor):
                state["step"] = torch.full((), float(state["step"]), dtype=torch.float32, device=sigma.device)
            elif state["step"].device != sigma.device:
                state["step"] = state["step"].to(sigma.device)
            rows, counts = by_device.setdefault(sigma.device, ([], []))
            rows.append(_make_row(sigma, state))
            counts.append(state["step"])
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)  # set by GradScaler
        for device, (rows, counts) in by_device.items():
            if scale is not None:
                gradients = torch._foreach_div([row[1] for row in rows], scale.to(device, non_blocking=True))
                rows = [(row[0], gradient, *row[2:]) for row, gradient in zip(rows, gradients, strict=True)]
            if found_inf is None:
                _update_with_device_counts(rows, counts, group)
                continue
            changed = [tensor for row in rows for tensor in (row[0], *row[2:])] + counts
            before = torch._foreach_clone(changed)
            _update_with_device_counts(rows, counts, group)
            is_skipped = found_inf.to(device, non_blocking=True) != 0
            for old, new in zip(before, changed, strict=True):
                torch.where(is_skipped, old, new, out=new)

    def _prepare_state(self, sigma: Tensor) -> dict[str, Any]:
        state = self.state[sigma]
        if not state:
            state["step"] = 0
            state["h"], state["v"] = torch.zeros_like(sigma), torch.zeros_like(sigma)
        elif not _fits_parameter(state, sigma):  # the model was cast or moved since
            state["h"], state["v"] = state["h"].to(sigma), state["v"].to(sigma)
        return state

    def _check_capture(self, levels: Sequence[Tensor], *, is_capturable: bool) -> None:
        """Raise an error where the replays of a CUDA graph would repeat one step count or reset the state."""
        if not is_capturable:
            raise NoisepropError(
                "a CUDA graph captures SigmaAdam.step with a step count on the host, so each replay would repeat the "
                "same bias correction; construct SigmaAdam with capturable=True"
            )
        for sigma in levels:
            state: dict[str, Any] = self.state.get(sigma, {})
            is_ready = bool(state) and isinstance(state["step"], Tensor) and state["step"].device == sigma.device
            if not (is_ready and _fits_parameter(state, sigma)):
                raise NoisepropError(
                    "a CUDA graph captures the first SigmaAdam.step, so each replay would reset its state; take at "
                    "least one step with all gradients before the capture"
                )


def _check_settings(lr: float | Tensor, betas: tuple[float, float], eps: float, capturable: bool) -> None:
    if not lr >= 0 or not eps >= 0 or not all(0 <= b < 1 for b in betas):
        raise InputError(f"SigmaAdam got lr={lr}, betas={betas}, eps={eps}; pass lr >= 0, eps >= 0 and betas in [0, 1)")
    if isinstance(lr, Tensor) and not capturable:
        raise InputError("SigmaAdam got a tensor for lr; pass a number, or capturable=True")


def _is_captured(sigma: Tensor) -> bool:
    """Return whether a CUDA graph captures the current operations on sigma's device."""
    return sigma.is_cuda and torch.cuda.is_current_stream_capturing()


def _fits_parameter(state: dict[str, Any], sigma: Tensor) -> bool:
    return state["h"].dtype == sigma.dtype and state["h"].device == sigma.device


def _make_row(sigma: Tensor, state: dict[str, Any]) -> _Row:
    assert sigma.grad is not None
    return sigma, sigma.grad, state["h"], state["v"]


def _update_with_host_count(rows: Sequence[_Row], step: int, group: dict[str, Any]) -> None:
    (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
    correction1, correction2 = 1 - b1**step, 1 - b2**step
    if kernels.step_sigma_adam(rows, settings=(b1, b2, lr / correction1, 1 / correction2, eps)):
        return
    levels, gradients, h, v = (list(column) for column in zip(*rows, strict=True))
    _update_means(h, v, gradients, group["betas"])
    root = _compute_root(torch._foreach_div(v, correction2), eps)
    torch._foreach_addcdiv_(levels, h, root, -lr / correction1)
    torch._foreach_abs_(levels)


def _update_with_device_counts(rows: Sequence[_Row], counts: list[Tensor], group: dict[str, Any]) -> None:
    (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
    levels, gradients, h, v = (list(column) for column in zip(*rows, strict=True))
    _update_means(h, v, gradients, group["betas"])
    torch._foreach_add_(counts, 1)
    step = torch.stack(counts).to(torch.float32 if counts[0].device.type == "mps" else torch.float64)
    corrections2, rates = list((1 - b2**step).unbind()), list((-lr / (1 - b1**step)).unbind())
    root = _compute_root(torch._foreach_div(v, corrections2), eps)
    change = torch._foreach_div(h, root)
    torch._foreach_mul_(change, rates)
    torch._foreach_add_(levels, change)
    torch._foreach_abs_(levels)


def _update_means(h: list[Tensor], v: list[Tensor], gradients: list[Tensor], betas: tuple[float, float]) -> None:
    torch._foreach_lerp_(h, gradients, 1 - betas[0])
    torch._foreach_mul_(v, betas[1])
    torch._foreach_addcmul_(v, gradients, gradients, 1 - betas[1])


def _compute_root(v: _Tensors, eps: float) -> _Tensors:
    """Overwrite v / (1 - b2^N) with the root of Eq. 7, or with infinity where it is 0, so that sigma stays there."""
    torch._foreach_add_(v, eps)
    torch._foreach_sqrt_(v)
    for root in v:
        if eps < torch.finfo(root.dtype).smallest_normal:  # eps may be lost in this dtype
            root.masked_fill_(root == 0, torch.inf)
    return v


def sigmas(model: nn.Module) -> list[nn.Parameter]:
    """Return the learned noise levels of a model, for `SigmaAdam`.

    Args:
        model: any module, noisy or not.

    Returns:
        The sigma of every noise layer that learns one, without fixed sigmas, which are buffers.

    Raises:
        InputError: the noise is deferred until a first batch, so the model has no sigma yet.

    Examples:
        >>> import noiseprop
        >>> net = noiseprop.add_noise(nn.Linear(4, 3), [""], example=torch.zeros(1, 4))
        >>> [tuple(sigma.shape) for sigma in sigmas(net)], [tuple(weight.shape) for weight in weights(net)]
        ([(3,)], [(3, 4), (3,)])
    """
    sources = find_sources(model)
    return [m.sigma for m in sources if isinstance(m, NeuronNoise) and isinstance(m.sigma, nn.Parameter)]


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Return all other parameters of a model, including mu, for the optimizer of the weights.

    Args:
        model: any module, noisy or not.

    Returns:
        Every parameter that is not among `sigmas(model)`, in the order of `model.parameters()`.

    Raises:
        InputError: the noise is deferred until a first batch, so the sigmas are unknown.
    """
    levels = {id(sigma) for sigma in sigmas(model)}
    return [p for p in model.parameters() if id(p) not in levels]
