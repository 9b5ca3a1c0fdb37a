"""``NeuronNoise``: noise layer with the sigma (and mu) of one noise site."""

import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise import likelihood_ratio
from noiseprop.noise.gaussian_noise import gaussian_noise
from noiseprop.noise.sampling_state import PassScope
from noiseprop.noise.stream import NoiseSource, draw_seed

Init = float | Literal["normal"]
Granularity = Literal["neuron", "channel", "layer"]
Estimator = Literal["pathwise", "likelihood-ratio"]
Sampler = Callable[["NeuronNoise", Tensor, Tensor, int], Tensor]


class NeuronNoise(NoiseSource):
    """Layer that adds independent Gaussian noise to every neuron, ``x + mu + sigma * eps``, with learnable sigma.

    Args:
        shape: shape of sigma, broadcastable to the neurons of the input (B, *neurons).
        init: initial sigma: one number for all (in units of the pre-activation), or "normal" for draws from N(0, 1).
        learn: whether sigma is a parameter that receives gradients; otherwise it is a buffer of the same name.
        mean: whether there is also a learned mean mu, initially 0 (the paper's Figure 1). It is one of the weights.
        at_inference: whether noise acts in eval mode too. `sampling(model, "off")` silences it anyway.
        batch_dim: axis of the batch, such as 1 for time-first sequences (T, B, F), whose neurons are (T, F).
        estimator: "pathwise" is Eq. 3. "likelihood-ratio" needs no derivative of what follows the noise, but requires
            back-propagation of `likelihood_ratio_loss`. The attribute of the same name may be changed at any time.

    A layer that is not part of `add_noise` draws its seed from torch's global generator, as other layers draw their
    weights, and each call is a pass.

    sigma and mu stay float32 if a model is cast to a half type, as by `model.to(torch.bfloat16)`, which has no number
    between 1 and 1.008, much more than an optimizer's step. The output has the input's type.

    Examples:
        >>> noise = NeuronNoise((3,), init=0.5)
        >>> noise(torch.zeros(2, 3)).shape
        torch.Size([2, 3])

    Source: Xiao, Zhang and Peng (2021), Eq. 1.
    """

    sigma: Tensor
    mu: Tensor | None

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        init: Init = 1.0,
        learn: bool = True,
        mean: bool = False,
        at_inference: bool = True,
        batch_dim: int = 0,
        estimator: Estimator = "pathwise",
    ) -> None:
        super().__init__(draw_seed())
        size = _parse_shape(shape)
        sigma = _make_sigma(size, init)
        if learn:
            self.sigma = nn.Parameter(sigma)
        else:
            self.register_buffer("sigma", sigma)
        self.mu = nn.Parameter(torch.zeros(size, dtype=torch.float32)) if mean else None
        self.at_inference = at_inference
        self.batch_dim = batch_dim
        self.path = ""  # of the module that add_noise added the noise to
        self.granularity: Granularity | None = None  # how that module's neurons share sigmas
        self.estimator: Estimator = _check_estimator(estimator)
        self._sampler: Sampler | None = None
        self._finite_version: int | None = None  # of sigma, when it was last found to be finite
        self.is_attached = False

    def attach(self, scope: PassScope, *, seed: int, number: int, next_pass: int) -> None:
        """Join the layers that `add_noise` gives a model, as layer `number` of their common seed."""
        self.scope, self.is_attached = scope, True
        self.set_seed(seed, number=number, next_pass=next_pass)

    def forward(self, x: Tensor) -> Tensor:
        """Add noise to x (B, *neurons); return a new tensor, or x itself (plus mu, if any) where noise is off."""
        if not self.is_attached:
            likelihood_ratio.check_scores_were_used(self.scope)
        sampling = self.state.sampling
        if not (self.training or self.at_inference) or (sampling is not None and sampling.off):
            return self._add_mean(x)
        if x.is_nested:
            raise InputError(
                f"{self.path or 'NeuronNoise'}: nested tensors cannot carry noise; pass padded ones, or give the noise "
                "to the nn.TransformerEncoder as a whole, which then pads by itself"
            )
        if self.batch_dim:
            x = x.movedim(self.batch_dim, 0)
        if self.granularity == "neuron" and x.shape[1:] != self.sigma.shape:
            raise InputError(self._describe_shape_mismatch(x))
        key, draws, repeat = self.next_call(x.shape[0])
        if repeat is not None:
            x = repeat(x)
        try:
            y = self.noisy(x, key, draws) if self._sampler is None else self._sampler(self, x, key, draws)
        except InputError as error:
            raise InputError(f"{self.path or 'NeuronNoise'}: {error}") from error
        return y.movedim(0, self.batch_dim).contiguous() if self.batch_dim else y

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Compute Eq. 1 for x (draws * B, *neurons), batch first; layers with another form of noise override it."""
        if self.estimator == "likelihood-ratio":
            return likelihood_ratio.sample_with_score(x, self.sigma, self.mu, key, draws, self.scope)
        return gaussian_noise(x, self.sigma, mu=self.mu, key=key, draws=draws)

    def use_sampler(self, sampler: "Sampler | None") -> None:
        """Compute the noisy x by another function, as a check or a comparison needs; None returns to the layer's own.

        Args:
            sampler: ``sampler(layer, x, key, draws)`` returns the noisy x (draws * B, *neurons).
        """
        self._sampler = sampler

    def check_sigma(self) -> None:
        """Raise an InputError where sigma holds NaN or infinity, before it spreads.

        Sigma is checked when the layer first acts and, in eval mode, whenever it has changed. During training it
        changes at every step, a check would cost a pass over it (and a GPU its queue), and the loss shows it anyway.
        """
        if self.training and self._finite_version is not None:
            return
        sigma = self.sigma
        if sigma.is_inference() or sigma._version == self._finite_version:  # pyright: ignore[reportPrivateUsage]
            return
        if not sigma.detach().isfinite().all():
            raise InputError(
                f"{self.path}: sigma holds NaN or infinity; load an earlier state, and train with a smaller learning "
                "rate for sigma"
            )
        self._finite_version = sigma._version  # pyright: ignore[reportPrivateUsage]

    def _add_mean(self, x: Tensor) -> Tensor:
        """Add the mean alone, which stays when the noise is off because it is a bias."""
        if self.mu is None:
            return x
        return (x.movedim(self.batch_dim, 0) + self.mu).to(x.dtype).movedim(0, self.batch_dim)

    def _describe_shape_mismatch(self, x: Tensor) -> str:
        return (
            f"{self.path}: there is a sigma for each neuron of {tuple(self.sigma.shape)}, but this call has neurons "
            f"{tuple(x.shape[1:])}; for inputs of changing size call add_noise with granularity='channel'"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as any module, but keep sigma and mu in float32 or wider."""
        return super()._apply(lambda t: _keep_wide(t, fn(t)), recurse)

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        learned = "learned" if isinstance(self.sigma, nn.Parameter) else "fixed"
        return f"{tuple(self.sigma.shape)}, {learned}, at_inference={self.at_inference}"


def _parse_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        size = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        size = (-1,)
    if any(n < 0 for n in size):
        raise InputError(
            f"NeuronNoise got the shape {shape!r}; pass the sizes of sigma, whole numbers such as (64, 1, 1)"
        )
    return size


def _keep_wide(before: Tensor, after: Tensor) -> Tensor:
    """Return the result of a cast, unless it is narrower than float32."""
    if after.is_floating_point() and after.dtype.itemsize < 4:
        return before.to(after.device, torch.float32)
    return after


def _check_estimator(estimator: Estimator) -> Estimator:
    if estimator not in ("pathwise", "likelihood-ratio"):
        raise InputError(f"NeuronNoise got estimator={estimator!r}; choose 'pathwise' or 'likelihood-ratio'")
    return estimator


def is_level(init: Any) -> bool:
    """Return whether sigma can start at a value: a number that float32 can hold, neither infinite nor NaN."""
    return isinstance(init, numbers.Real) and bool(abs(cast(Any, init)) <= torch.finfo(torch.float32).max)


def _make_sigma(size: tuple[int, ...], init: Init) -> Tensor:
    """Return the initial sigma, in float32 for any default dtype."""
    if init == "normal":
        return torch.randn(size, dtype=torch.float32)
    if not is_level(init):
        raise InputError(f"NeuronNoise got init={init!r}; pass a finite number, or 'normal' for draws from N(0, 1)")
    return torch.full(size, float(init), dtype=torch.float32)
