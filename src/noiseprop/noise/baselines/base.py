"""Base classes of the published layers: unit noise from the model's stream, for every sample or for the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noiseprop.errors import InputError
from noiseprop.noise.gaussian_noise import gaussian_noise
from noiseprop.noise.layer import NeuronNoise


class BaselineNoise(NeuronNoise):
    """Noise layer whose noise has another form than Eq. 1, or is shared by the samples of a batch.

    Args:
        shape: shape of `sigma`, the level of the noise in the unit of the subclass.
        shared: draw one noise for all samples of a draw.
        options: the options of `NeuronNoise`.
    """

    def __init__(self, shape: int | Sequence[int], *, shared: bool = False, **options: Any) -> None:
        super().__init__(shape, **options)
        self.shared = shared

    def apply_noise(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """Return the noisy x, from x (draws * B, *neurons) and standard normals of its shape."""
        raise NotImplementedError

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Draw the noise and apply it."""
        self.check_estimator()
        return self.apply_noise(x, draw_unit_noise(x.shape, key, draws, like=x, shared=self.shared), draws).to(x.dtype)

    def check_estimator(self) -> None:
        """Raise an InputError for any estimator except the pathwise, which would be ignored."""
        if self.estimator != "pathwise":
            raise InputError(f"{type(self).__name__} has only the pathwise estimator, got {self.estimator!r}")

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        return f"{super().extra_repr()}, shared={self.shared}"


class AdditiveNoise(BaselineNoise):
    """Noise ``x + sigma * eps``: Eq. 1, or the same with one eps for all samples."""

    def apply_noise(self, x: Tensor, eps: Tensor, draws: int) -> Tensor:
        """Return the noisy x."""
        return x + self.sigma * eps

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Draw the noise; unless it is shared, by the fused kernel."""
        if self.shared:
            return super().noisy(x, key, draws)
        return NeuronNoise.noisy(self, x, key, draws)


def draw_unit_noise(shape: Sequence[int], key: Tensor, draws: int, *, like: Tensor, shared: bool) -> Tensor:
    """Return standard normals (draws * B, *neurons), float32 or wider; if shared, the B rows of a draw are equal."""
    rows, *neurons = shape
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    one = like.new_ones((), dtype=dtype)
    if not shared:
        return gaussian_noise(like.new_zeros(shape, dtype=dtype), one, key=key, draws=draws)
    eps = gaussian_noise(like.new_zeros(draws, *neurons, dtype=dtype), one, key=make_shared_key(key), draws=draws)
    return eps.unsqueeze(1).expand(draws, rows // draws, *neurons).reshape(rows, *neurons)


def make_shared_key(key: Tensor) -> Tensor:
    """Return the key without its first sample, which is then the same in every process of a distributed batch."""
    return torch.cat([key[:4], key.new_zeros(1)])
