"""NEFTune: uniform noise on a language model's embeddings while it is fine-tuned."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noiseprop.noise.attach.add_noise import Settings, place
from noiseprop.noise.attach.selectors import Where
from noiseprop.noise.baselines.base import PresetNoise


class EmbeddingNoise(PresetNoise):
    """``x + alpha / sqrt(L d) * u`` with u uniform in (-1, 1); `sigma` holds alpha, which is not learned."""

    def form(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """The noisy x."""
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
    """Give a model NEFTune, in place: uniform noise in ``alpha / sqrt(L d)`` times (-1, 1) on embeddings (B, L, d).

    Noise acts in training only. L is the length of the sequences as they come, padding included.

    Args:
        model: a language model.
        where: as for `add_noise`; all nn.Embedding modules if omitted. Name that of the tokens where there are others.
        alpha: scale of the noise; the paper tries 5, 10 and 15.
        shared: one noise for all sequences of a batch; the authors' is independent.
        example: inputs to call the model with once; not needed for nn.Embedding modules.
        key: seed of the noise.

    Returns:
        The model itself; `remove_noise` takes the noise away.

    Raises:
        InputError: as `add_noise`.

    Examples:
        >>> net = neftune(nn.Sequential(nn.Embedding(10, 4)))
        >>> tokens = torch.zeros(2, 5, dtype=torch.long)
        >>> torch.equal(net.train()(tokens), net.eval()(tokens))
        False

    Source: Jain et al. (2023), NEFTune: noisy embeddings improve instruction finetuning, Algorithm 1.
    """
    settings = Settings(
        granularity="layer",
        init=alpha,
        learn=False,
        at_inference=False,
        key=key,
        make=partial(EmbeddingNoise, shared=shared),
    )
    return place(model, where, settings, example)
