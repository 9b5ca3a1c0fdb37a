"""Parametric noise injection: noise in proportion to a tensor's standard deviation, with a learned factor per layer."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import LayerOptions, place_noise
from noiseprop.noise.attach.selectors import Where, before, select_sites
from noiseprop.noise.baselines.base import BaselineNoise, make_shared_key
from noiseprop.noise.gaussian_noise import gaussian_noise

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ActivationNoise(BaselineNoise):
    """Noise ``x + alpha * std(x) * eps``; `sigma` is alpha.

    The standard deviation is taken over the neurons of each sample, or with shared noise, as in the paper, over the
    batch. No gradient passes through it.
    """

    def apply_noise(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """Return the noisy x."""
        groups = draws if self.shared else len(x)  # rows of a group share a standard deviation
        std = x.detach().to(eps.dtype).reshape(groups, -1).std(1, correction=0)
        per_row = std.repeat_interleave(len(x) // groups).view(-1, *[1] * (x.dim() - 1))
        return x + self.sigma * per_row * eps


class WeightNoise(BaselineNoise):
    """Noise ``(W + alpha * std(W) * eps) x + b``; `sigma` is alpha.

    The layer adds ``(alpha * std(W) * eps) x`` to the module's output.
    """

    _current_call: tuple[Any, Tensor] | None = None  # the module and its input, batch first

    def add_by_input(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Return the output of a Linear layer or a convolution with a noisy weight."""
        self._current_call = module, x.movedim(self.batch_dim, 0)
        try:
            return self(output)
        finally:
            self._current_call = None

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Draw a weight's noise for each row, or for each draw, and multiply its input by it."""
        self.check_estimator()
        assert self._current_call is not None
        module, inputs = self._current_call
        weight: Tensor = module.weight
        if len(inputs) < len(x):
            inputs = torch.cat([inputs] * draws)  # as the output was repeated
        groups = draws if self.shared else len(x)
        if self.shared:
            key = make_shared_key(key)
        level = self.sigma * weight.detach().std(correction=0)
        noise = gaussian_noise(weight.new_zeros(groups, *weight.shape), level, key=key, draws=draws)
        inputs = inputs.reshape(groups, -1, *inputs.shape[1:])
        multiply = torch.vmap(partial(_apply_without_bias, module))
        return x + multiply(noise.to(x.dtype), inputs.to(x.dtype)).flatten(0, 1)  # in x's type, as under autocast


def pni(
    model: nn.Module,
    where: Where = "all",
    *,
    on: Literal["activations", "weights"] = "weights",
    alpha: float = 0.25,
    shared: bool = False,
    example: Any = None,
    key: int = 0,
) -> nn.Module:
    """Add PNI to a model in place: ``v + alpha * std(v) * eps`` with one learned alpha per layer.

    Alpha is the layer's `sigma`, in units of v's standard deviation, so `sigmas(model)` finds it. Train it on the mean
    of a clean and an adversarial loss; on the clean loss alone it shrinks to zero.

    Args:
        model: the network.
        where: as for `add_noise`. Noise on weights needs Linear layers and plain convolutions.
        on: the tensor v: "weights" of each module (PNI-W; noise for every sample takes B times the weight's memory),
            or "activations", which are its outputs (PNI-A) or, with ``where=before(...)``, its inputs (PNI-I).
        alpha: initial value; the authors' code has 0.25.
        shared: draw one noise for all samples of a batch, as in the paper; the standard deviation of activations is
            then also that of the whole batch.
        example: inputs to call the model with once; needed where `add_noise` needs it for one sigma a layer.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` removes the noise.

    Raises:
        InputError: see `add_noise`; or ``on="weights"`` and a module has no weight of a known kind.

    Examples:
        >>> import noiseprop
        >>> net = pni(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> [alpha.item() for alpha in noiseprop.sigmas(net)]
        [0.25, 0.25]

    Source: He, Rakin and Fan (2019), Parametric noise injection, CVPR.
    """
    if on not in ("activations", "weights"):
        raise InputError(f"pni got on={on!r}; choose 'activations' or 'weights'")
    if on == "weights":
        _check_weighted_sites(model, where)
    kind = WeightNoise if on == "weights" else ActivationNoise
    options = LayerOptions(granularity="layer", init=alpha, key=key, make_layer=partial(kind, shared=shared))
    return place_noise(model, where, options, example)


def _check_weighted_sites(model: nn.Module, where: Where) -> None:
    if isinstance(where, before):
        raise InputError(
            "pni: before(...) selects inputs, which have no weights; select the modules, or pass on='activations'"
        )
    for site in select_sites(model, where):
        if not isinstance(site.module, _WEIGHTED):
            raise InputError(
                f"{site} is a {type(site.module).__name__}, whose weight pni does not support; select Linear layers "
                "and convolutions, or pass on='activations'"
            )


def _apply_without_bias(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight)
    return module._conv_forward(x, weight, None)
