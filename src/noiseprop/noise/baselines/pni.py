"""Parametric noise injection: noise in proportion to a tensor's own standard deviation, one learned factor a layer."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import Settings, place
from noiseprop.noise.attach.selectors import Where, before, choose
from noiseprop.noise.baselines.base import PresetNoise, key_of_all
from noiseprop.noise.gaussian_noise import gaussian_noise

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ActivationNoise(PresetNoise):
    """``x + alpha * std(x) * eps``; `sigma` is alpha.

    The standard deviation is taken over the sample's own neurons, or with shared noise, as in the paper, over the
    batch. No gradient goes through it.
    """

    def form(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """The noisy x."""
        apart = draws if self.shared else len(x)  # what shares a standard deviation
        std = x.detach().to(eps.dtype).reshape(apart, -1).std(1, correction=0)
        per_row = std.repeat_interleave(len(x) // apart).view(-1, *[1] * (x.dim() - 1))
        return x + self.sigma * per_row * eps


class WeightNoise(PresetNoise):
    """``(W + alpha * std(W) * eps) x + b``; `sigma` is alpha. It is added as ``alpha * std(W) * eps`` times x."""

    def add_by_input(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The output of a Linear layer or a convolution, had its weight been noisy."""
        self.__dict__["_call"] = module, x.movedim(self.batch_dim, 0)
        try:
            return self(output)
        finally:
            del self.__dict__["_call"]

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Draw a weight's noise for each row, or for each draw, and multiply its input by it."""
        self.refuse_estimators()
        module, given = self.__dict__["_call"]
        weight: Tensor = module.weight
        if len(given) < len(x):
            given = torch.cat([given] * draws)  # as the output was repeated
        groups = draws if self.shared else len(x)
        if self.shared:
            key = key_of_all(key)
        level = self.sigma * weight.detach().std(correction=0)
        noise = gaussian_noise(weight.new_zeros(groups, *weight.shape), level, key=key, draws=draws)
        given = given.reshape(groups, -1, *given.shape[1:])
        extra = torch.vmap(partial(_without_bias, module))(noise.to(x.dtype), given.to(x.dtype))  # as under autocast
        return x + extra.flatten(0, 1)


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
    """Give a model PNI, in place: ``v + alpha * std(v) * eps`` with one learned alpha a layer.

    Alpha is the layer's `sigma`, in units of v's standard deviation, so `sigmas(model)` finds it. It is meant to be
    trained on the mean of a clean and an adversarial loss; on the clean loss alone it vanishes.

    Args:
        model: the network.
        where: as for `add_noise`. Noise on weights needs Linear layers and plain convolutions.
        on: what v is: each module's "weights" (PNI-W; noise for every sample takes B times the weight's memory), or the
            "activations" that it returns (PNI-A), or is given with ``where=before(...)`` (PNI-I).
        alpha: its start; the authors' code has 0.25.
        shared: one noise for all samples of a batch, as in the paper; the standard deviation of activations is then
            the whole batch's as well.
        example: inputs to call the model with once; needed where `add_noise` needs it for one sigma a layer.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` takes the noise away.

    Raises:
        InputError: as `add_noise`; or noise on weights is wanted where there is none of a known kind.

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
        _check_weights(model, where)
    kind = WeightNoise if on == "weights" else ActivationNoise
    settings = Settings(granularity="layer", init=alpha, key=key, make=partial(kind, shared=shared))
    return place(model, where, settings, example)


def _check_weights(model: nn.Module, where: Where) -> None:
    if isinstance(where, before):
        raise InputError(
            "pni: a module's weight is not before it; name the modules themselves, or pass on='activations'"
        )
    for site in choose(model, where):
        if not isinstance(site.module, _WEIGHTED):
            raise InputError(
                f"{site} is a {type(site.module).__name__}, whose weight pni does not know; name Linear layers and "
                "convolutions, or pass on='activations'"
            )


def _without_bias(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight)
    return module._conv_forward(x, weight, None)
