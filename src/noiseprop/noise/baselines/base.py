"""What the published layers have in common: unit noise from the model's stream, for every sample or for the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noiseprop.errors import InputError
from noiseprop.noise.gaussian_noise import gaussian_noise
from noiseprop.noise.layer import NeuronNoise


class PresetNoise(NeuronNoise):
    """A noise layer whose noise has another form than Eq. 1, or is shared by the samples of a batch.

    Args:
        shape: shape of `sigma`, the level of the noise in the unit that the preset says.
        shared: one noise for all samples of a draw.
        options: those of `NeuronNoise`.
    """

    def __init__(self, shape: int | Sequence[int], *, shared: bool = False, **options: Any) -> None:
        super().__init__(shape, **options)
        self.shared = shared

    def form(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """The noisy x, from x (draws * B, *neurons) and standard normals of its shape."""
        raise NotImplementedError

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Draw the noise and apply it."""
        self.refuse_estimators()
        return self.form(x, unit_noise(x.shape, key, draws, like=x, shared=self.shared), draws).to(x.dtype)

    def refuse_estimators(self) -> None:
        """Raise an InputError where another estimator than the pathwise was set, which could only be ignored."""
        if self.estimator != "pathwise":
            raise InputError(f"{type(self).__name__} has only the pathwise estimator, not {self.estimator!r}")

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{super().extra_repr()}, shared={self.shared}"


class AdditiveNoise(PresetNoise):
    """``x + sigma * eps``: Eq. 1, or the same with one eps for all samples."""

    def form(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """The noisy x."""
        return x + self.sigma * eps

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Draw the noise; where it is not shared, by the fused op."""
        if self.shared:
            return super().noisy(x, key, draws)
        return NeuronNoise.noisy(self, x, key, draws)


def unit_noise(shape: Sequence[int], key: Tensor, draws: int, *, like: Tensor, shared: bool) -> Tensor:
    """Standard normals (draws * B, *neurons) of a key, float32 or wider; if shared, each draw's B rows are the same."""
    rows, *neurons = shape
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    one = like.new_ones((), dtype=dtype)
    if not shared:
        return gaussian_noise(like.new_zeros(shape, dtype=dtype), one, key=key, draws=draws)
    eps = gaussian_noise(like.new_zeros(draws, *neurons, dtype=dtype), one, key=key_of_all(key), draws=draws)
    return eps.unsqueeze(1).expand(draws, rows // draws, *neurons).reshape(rows, *neurons)


def key_of_all(key: Tensor) -> Tensor:
    """The key without its first sample: the same in every process of a distributed batch."""
    return torch.cat([key[:4], key.new_zeros(1)])
