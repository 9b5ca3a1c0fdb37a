"""Variational dropout: multiplicative Gaussian noise with learned rates, trained with a KL term."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise.attach.add_noise import LayerOptions, noise_layers, place_noise
from noiseprop.noise.attach.selectors import Where, before
from noiseprop.noise.baselines.base import BaselineNoise
from noiseprop.noise.objectives import Objective

_C1, _C2, _C3 = 1.16145124, -1.50204118, 0.58629921  # Kingma et al., section 3.3
_MIN_SIGMA = 1e-4  # after a step


class VariationalDropoutNoise(BaselineNoise):
    """Noise ``x * (1 + sigma * eps)``: x times N(1, alpha) noise with ``alpha = sigma^2``, one alpha per neuron."""

    def apply_noise(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """Return the noisy x."""
        return x * (1 + self.sigma * eps)


def variational_dropout(
    model: nn.Module,
    where: Where | None = None,
    *,
    alpha: float = 0.25,
    shared: bool = False,
    example: Any,
    key: int = 0,
) -> nn.Module:
    """Add variational dropout to a model in place: layer inputs times N(1, alpha) noise, with an alpha per neuron.

    This is the paper's noise with correlated weights (section 3.2): to multiply a neuron is to multiply all weights
    that read it. Noise acts in training only; inference uses the mean weights. Train with `DropoutKL`.

    Args:
        model: the network.
        where: as for `add_noise`; before all Linear layers if omitted.
        alpha: initial variance of the noise; dropout with rate p has p / (1 - p). The layers hold its root as `sigma`.
        shared: draw one noise for all samples of a batch.
        example: inputs to call the model with once, to find the shapes.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` removes the noise.

    Raises:
        InputError: see `add_noise`; or alpha is not in (0, 1].

    Examples:
        >>> net = variational_dropout(nn.Linear(3, 2), alpha=1.0, example=torch.zeros(1, 3))
        >>> abs(DropoutKL(net, images=50_000).term().item()) < 1e-9  # at its largest alpha it costs nothing
        True

    Source: Kingma, Salimans and Welling (2015), Variational dropout and the local reparameterization trick.
    """
    if not 0 < alpha <= 1:
        raise InputError(f"variational_dropout got alpha={alpha}; the KL term is defined for alpha in (0, 1]")
    options = LayerOptions(
        init=alpha**0.5, at_inference=False, key=key, make_layer=partial(VariationalDropoutNoise, shared=shared)
    )
    return place_noise(model, before("linear") if where is None else where, options, example)


class DropoutKL(Objective):
    """Objective of variational dropout: the KL divergence of the noisy weights from their log-uniform prior, per image.

    The loss per image gains ``sum over the neurons of KL(alpha) / images``, where up to a constant

        -KL(alpha) = log(alpha) / 2 + 1.16145124 alpha - 1.50204118 alpha^2 + 0.58629921 alpha^3,   0 < alpha <= 1.

    After each step alpha is clamped to that range. The constant makes KL(1) zero.

    Args:
        model: a network with `variational_dropout`.
        images: number of images in the training set.

    Raises:
        InputError: the model has no variational dropout, or `images` is below 1.

    Examples:
        >>> net = variational_dropout(nn.Linear(3, 2), alpha=0.25, example=torch.zeros(1, 3))
        >>> DropoutKL(net, images=100).term() > 0
        tensor(True)

    Source: Kingma, Salimans and Welling (2015), section 3.3 and appendix C.
    """

    def __init__(self, model: nn.Module, images: int) -> None:
        self.sigmas = [
            layer.sigma for layer in noise_layers(model).values() if isinstance(layer, VariationalDropoutNoise)
        ]
        if not self.sigmas:
            raise InputError(
                "DropoutKL: the model has no variational dropout; call variational_dropout(model, ...) first"
            )
        if images < 1:
            raise InputError(f"DropoutKL: the training set must have at least 1 image, got {images}")
        self.images = images

    def term(self) -> Tensor:
        """Return the divergence, in nats per image."""
        alpha = torch.cat([sigma.flatten() for sigma in self.sigmas]).square()
        gain = 0.5 * alpha.log() + _C1 * alpha + _C2 * alpha**2 + _C3 * alpha**3
        return (_C1 + _C2 + _C3 - gain).sum() / self.images

    @torch.no_grad()
    def project(self) -> None:
        """Clamp alpha to the range above 0 and at most 1."""
        for sigma in self.sigmas:
            sigma.copy_(sigma.abs().clamp_(_MIN_SIGMA, 1))
