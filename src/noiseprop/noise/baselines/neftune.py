"""NEFTune: uniform noise on a language model's embeddings during fine-tuning."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.noise.attach.add_noise import LayerOptions, place_noise
from noiseprop.noise.attach.selectors import Where
from noiseprop.noise.baselines.base import BaselineNoise


class EmbeddingNoise(BaselineNoise):
    """Noise ``x + alpha / sqrt(L d) * u`` with u uniform in (-1, 1); `sigma` holds alpha, which is not learned."""

    def apply_noise(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """Return the noisy x."""
        size = math.prod(x.shape[1:])  # L * d
        uniform = torch.special.erf(eps * 0.5**0.5)  # 2 Phi(eps) - 1
        return x + self.sigma / size**0.5 * uniform


def neftune(
    model: nn.Module,
    where: Where = nn.Embedding,
    *,
    alpha: float = 5.0,
    shared: bool = False,
    example: Any = None,
    key: int = 0,
) -> nn.Module:
    """Add NEFTune to a model in place: uniform noise in ``alpha / sqrt(L d)`` times (-1, 1) on embeddings (B, L, d).

    Noise acts in training only. L is the length of the sequences including padding.

    Args:
        model: a language model.
        where: as for `add_noise`; all nn.Embedding modules if omitted. Select the token embedding in a model with
            other embeddings.
        alpha: scale of the noise; the paper tries 5, 10 and 15.
        shared: draw one noise for all sequences of a batch; the authors' noise is independent.
        example: inputs to call the model with once; not needed for nn.Embedding modules.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` removes the noise.

    Raises:
        InputError: see `add_noise`.

    Examples:
        >>> net = neftune(nn.Sequential(nn.Embedding(10, 4)))
        >>> tokens = torch.zeros(2, 5, dtype=torch.long)
        >>> torch.equal(net.train()(tokens), net.eval()(tokens))
        False

    Source: Jain et al. (2023), NEFTune: noisy embeddings improve instruction finetuning, Algorithm 1.
    """
    options = LayerOptions(
        granularity="layer",
        init=alpha,
        learn=False,
        at_inference=False,
        key=key,
        make_layer=partial(EmbeddingNoise, shared=shared),
    )
    return place_noise(model, where, options, example)
