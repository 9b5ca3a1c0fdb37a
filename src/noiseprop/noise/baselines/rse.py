"""Random self-ensemble: fixed noise before every convolution, and the mean prediction over several draws."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from noiseprop.noise.attach.add_noise import LayerOptions, noise_layers, place_noise
from noiseprop.noise.attach.selectors import Where, before
from noiseprop.noise.baselines.base import AdditiveNoise
from noiseprop.noise.sampling import sampling


def rse(
    model: nn.Module,
    where: Where | None = None,
    *,
    first: float = 0.2,
    inner: float = 0.1,
    shared: bool = False,
    example: Any,
    key: int = 0,
) -> nn.Module:
    """Add RSE's noise to a model in place: ``x + sigma * eps`` with a fixed sigma before every convolution.

    Noise acts in training and at inference, where `self_ensemble` averages the predictions.

    Args:
        model: the network.
        where: as for `add_noise`; before all convolutions if omitted.
        first: sigma at the first of these modules, in their order in the model; its input should be the image.
        inner: sigma at the other modules. The authors' code has 0.2 and 0.1.
        shared: draw one noise for all samples of a batch; the authors' noise is independent.
        example: inputs to call the model with once.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` removes the noise.

    Raises:
        InputError: see `add_noise`.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3), nn.Flatten())
        >>> net = rse(net, example=torch.zeros(1, 1, 5, 5))
        >>> {path: layer.sigma.item() for path, layer in noise_layers(net).items()}
        {'0.noise': 0.2..., '2.noise': 0.1...}
        >>> self_ensemble(net, torch.zeros(4, 1, 5, 5), draws=10).shape
        torch.Size([4, 5])

    Source: Liu, Cheng, Zhang and Hsieh (2018), Towards robust neural networks via random self-ensemble, ECCV.
    """
    options = LayerOptions(
        granularity="layer", init=inner, learn=False, key=key, make_layer=partial(AdditiveNoise, shared=shared)
    )
    existing = noise_layers(model)
    place_noise(model, before("conv") if where is None else where, options, example)
    added = [layer for path, layer in noise_layers(model).items() if path not in existing]
    added[0].sigma.fill_(first)
    return model


def self_ensemble(model: nn.Module, x: Tensor, *, draws: int) -> Tensor:
    """Return the mean of the softmax probabilities over independent draws of the noise.

    Args:
        model: maps x to logits (B, classes).
        x: inputs (B, ...).
        draws: number of predictions to average.

    Returns:
        Probabilities (B, classes), differentiable with respect to x and the weights.

    Raises:
        InputError: draws is below 1, or a batch norm is in training mode.

    Source: Liu et al. (2018), Algorithm 1.
    """
    with sampling(model, "fresh", draws=draws):
        return model(x).softmax(-1).mean(0)
