"""``SigmaAdam``: Eq. 7, and the split of a model's parameters between the two optimizers."""

# torch names its foreach operations as private ones:
# pyright: reportPrivateUsage=false

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.deferred import check_noise_exists
from noiseprop.noise.kernels import dispatch as kernels
from noiseprop.noise.layer import NeuronNoise

_Row = tuple[Tensor, Tensor, Tensor, Tensor]  # sigma, gradient, h, v


class SigmaAdam(torch.optim.Optimizer):
    """Adam for noise levels, to the letter of Eq. 7.

        h <- b1 h + (1 - b1) g             v <- b2 v + (1 - b2) g^2
        sigma <- | sigma - lr * h / (1 - b1^N) / sqrt(v / (1 - b2^N) + eps) |

    It differs from `torch.optim.Adam` twice: eps stands inside the root, where 1e-8 floors the root at 1e-4, and the
    updated sigma is replaced by its absolute value. There is no weight decay.

    Args:
        params: the noise levels, `sigmas(model)`.
        lr: step size, in units of sigma.
        betas: decay of the two running means.
        eps: added to v inside the root, in units of the gradient squared.

    Raises:
        InputError: lr or eps is below 0, a beta is outside [0, 1), or there are no noise levels.

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
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not lr >= 0 or not eps >= 0 or not all(0 <= b < 1 for b in betas):
            raise InputError(
                f"SigmaAdam got lr={lr}, betas={betas}, eps={eps}; pass lr >= 0, eps >= 0 and betas in [0, 1)"
            )
        groups: Any = params if isinstance(params, Tensor) else list(params)  # torch rejects a tensor
        if not isinstance(groups, Tensor) and all(isinstance(g, dict) and not g["params"] for g in groups):
            raise InputError(
                "SigmaAdam got no sigma; call add_noise(model, learn=True) before sigmas(model), as a model without "
                "learned noise has none"
            )
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every sigma that has a gradient; `closure`, if given, computes the loss again first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, list[_Row]] = {}
            for sigma in group["params"]:
                if sigma.grad is not None:
                    state = self._advance(sigma)
                    by_step.setdefault(state["step"], []).append((sigma, sigma.grad, state["h"], state["v"]))
            for step, rows in by_step.items():
                _move(rows, step, group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients as torch does, whose own way takes a small network as long as one noise site."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for sigma in group["params"]:
                sigma.grad = None

    def _advance(self, sigma: Tensor) -> dict[str, Any]:
        state = self.state[sigma]
        if not state:
            state["step"] = 0
            state["h"], state["v"] = torch.zeros_like(sigma), torch.zeros_like(sigma)
        elif state["h"].dtype != sigma.dtype or state["h"].device != sigma.device:  # the model was cast or moved since
            state["h"], state["v"] = state["h"].to(sigma), state["v"].to(sigma)
        state["step"] += 1
        return state


def _move(rows: list[_Row], step: int, group: dict[str, Any]) -> None:
    (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
    correction1, correction2 = 1 - b1**step, 1 - b2**step
    if kernels.step_sigma_adam(rows, settings=(b1, b2, lr / correction1, 1 / correction2, eps)):
        return
    sigmas, gradients, h, v = (list(column) for column in zip(*rows, strict=True))
    torch._foreach_lerp_(h, gradients, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, gradients, gradients, 1 - b2)
    root = torch._foreach_div(v, correction2)
    torch._foreach_add_(root, eps)
    torch._foreach_sqrt_(root)
    torch._foreach_addcdiv_(sigmas, h, root, -lr / correction1)
    torch._foreach_abs_(sigmas)


def sigmas(model: nn.Module) -> list[nn.Parameter]:
    """The learned noise levels of a model, for `SigmaAdam`.

    Args:
        model: any module, noisy or not.

    Returns:
        The sigma of every noise layer that learns one; those that are fixed are buffers and not among them.

    Raises:
        InputError: the noise still waits for a first batch, so that there is no sigma yet.

    Examples:
        >>> import noiseprop
        >>> net = noiseprop.add_noise(nn.Linear(4, 3), [""], example=torch.zeros(1, 4))
        >>> [tuple(sigma.shape) for sigma in sigmas(net)], [tuple(weight.shape) for weight in weights(net)]
        ([(3,)], [(3, 4), (3,)])
    """
    check_noise_exists(model)
    return [m.sigma for m in model.modules() if isinstance(m, NeuronNoise) and isinstance(m.sigma, nn.Parameter)]


def weights(model: nn.Module) -> list[nn.Parameter]:
    """All other parameters of a model (mu among them), for the optimizer that trains the network.

    Args:
        model: any module, noisy or not.

    Returns:
        Every parameter that is not among `sigmas(model)`, in the order of `model.parameters()`.

    Raises:
        InputError: the noise still waits for a first batch, so that it is not known which they are.
    """
    levels = {id(sigma) for sigma in sigmas(model)}
    return [p for p in model.parameters() if id(p) not in levels]
