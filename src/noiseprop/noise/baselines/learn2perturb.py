"""Learn2Perturb: learned Gaussian noise for every neuron, with a bonus that keeps it above zero."""

from functools import partial
from typing import Any

from torch import nn

from noiseprop.noise.attach.add_noise import LayerOptions, place_noise
from noiseprop.noise.attach.selectors import Where
from noiseprop.noise.baselines.base import AdditiveNoise


def learn2perturb(
    model: nn.Module, where: Where = "all", *, init: float = 0.25, shared: bool = False, example: Any, key: int = 0
) -> nn.Module:
    """Add Learn2Perturb's noise to a model in place: ``x + theta * eps`` with a learned theta per neuron.

    The layer is that of `add_noise`, but its training differs: with `objectives.SquareRootBonus`, from theta = 0.25,
    and after some epochs without noise. The authors' code draws one noise for the whole batch (``shared=True``) and
    updates theta on the bonus alone before each update of all parameters on the loss.

    Args:
        model: the network.
        where: as for `add_noise`; the paper uses the outputs of the residual blocks and of the first convolution.
        init: initial theta, in units of the output.
        shared: draw one noise for all samples of a batch.
        example: inputs to call the model with once, to find the shapes.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` removes the noise.

    Raises:
        InputError: see `add_noise`.

    Examples:
        >>> import noiseprop, torch
        >>> from noiseprop.noise.objectives import SquareRootBonus
        >>> net = learn2perturb(nn.Linear(3, 2), example=torch.zeros(1, 3))
        >>> objective = SquareRootBonus(noiseprop.sigmas(net))
        >>> round(objective.term().item(), 6)  # -1e-4 * 2 * sqrt(0.25)
        -0.0001

    Source: Jeddi, Shafiee, Karg, Scharfenberger and Wong (2020), Learn2Perturb, CVPR.
    """
    options = LayerOptions(init=init, key=key, make_layer=partial(AdditiveNoise, shared=shared))
    return place_noise(model, where, options, example)
