"""``NeuronNoise``: the sigma (and mu) of one noise site."""

import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError
from noiseprop.noise import likelihood_ratio
from noiseprop.noise.gaussian_noise import gaussian_noise
from noiseprop.noise.stream import NoiseStream

Init = float | Literal["normal"]
Granularity = Literal["neuron", "channel", "layer"]
Estimator = Literal["pathwise", "likelihood-ratio"]
Sampler = Callable[["NeuronNoise", Tensor, Tensor, int], Tensor]


class NeuronNoise(nn.Module):
    """Gaussian noise of its own for every neuron, ``x + mu + sigma * eps``, with a sigma that can be learned.

    Args:
        shape: shape of sigma, broadcastable to the neurons of the input (B, *neurons).
        init: sigma's start: one number for all (units of the pre-activation), or "normal" for draws from N(0, 1).
        learn: whether sigma is a parameter that receives gradients; a buffer of the same name if not.
        mean: whether there is a learned mean mu as well, starting at 0 (the paper's Figure 1); it is one of the
            weights.
        at_inference: whether noise acts in eval mode too. `sampling(model, "off")` silences it anyway.
        batch_dim: axis of the batch, such as 1 for time-first sequences (T, B, F), whose neurons are (T, F).
        estimator: "pathwise" is Eq. 3; "likelihood-ratio" needs no derivative of what follows the noise, but wants
            `likelihood_ratio_loss` to be back-propagated. An attribute of the same name may be changed at any time.

    A layer that stands alone draws its seed from torch's global generator, as other layers draw their weights, and each
    call is a pass of its own. `add_noise` gives the layers of a model one common stream instead.

    sigma and mu stay float32 when a model is cast to a half type, as by `model.to(torch.bfloat16)`, which knows no
    number between 1 and 1.008, far more than an optimizer's step. The output has the input's type all the same.

    Examples:
        >>> noise = NeuronNoise((3,), init=0.5)
        >>> noise(torch.zeros(2, 3)).shape
        torch.Size([2, 3])

    Source: Xiao, Zhang and Peng (2021), Eq. 1.
    """

    sigma: Tensor
    mu: Tensor | None
    stream: NoiseStream

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
        super().__init__()
        size = _size(shape)
        sigma = _start(size, init)
        if learn:
            self.sigma = nn.Parameter(sigma)
        else:
            self.register_buffer("sigma", sigma)
        self.mu = nn.Parameter(torch.zeros(size)) if mean else None
        self.at_inference = at_inference
        self.batch_dim = batch_dim
        self.path = ""  # of the module that add_noise gave the noise to, and how its sigmas are shared:
        self.granularity: Granularity | None = None
        self.estimator: Estimator = _known(estimator)
        self._hold(NoiseStream(int(torch.randint(2**62, ()).item())), as_child=True)
        self._sampler: Sampler | None = None
        self._finite_version: int | None = None  # of sigma, when it was last found to be finite
        self.alone = True  # until bind()
        self.number = 0

    def bind(self, stream: NoiseStream, number: int) -> None:
        """Draw from a model's stream as its layer `number`; layer 0 holds the stream for all."""
        self._hold(stream, as_child=number == 0)
        self.alone, self.number = False, number
        stream.make_room(number + 1)

    def _hold(self, stream: NoiseStream, *, as_child: bool) -> None:
        """Keep a stream at hand; only one layer has it for a child, so that state_dict() sees it once."""
        self._modules.pop("stream", None)
        if as_child:
            self._modules["stream"] = stream
        self.__dict__["stream"] = stream  # where Python finds it without nn.Module's slow search

    def forward(self, x: Tensor) -> Tensor:
        """Add noise to x (B, *neurons); returns a new tensor, or x itself (plus mu, if any) where noise is off."""
        stream = self.stream
        if self.alone:
            likelihood_ratio.check_used(stream)
            stream.begin()
        sampling = stream.sampling
        if not (self.training or self.at_inference) or (sampling is not None and sampling.off):
            return self._silent(x)
        if x.is_nested:
            raise InputError(
                f"{self.path or 'NeuronNoise'}: nested tensors cannot carry noise; pass padded ones, or give the noise "
                "to the nn.TransformerEncoder as a whole, which then pads by itself"
            )
        if self.batch_dim:
            x = x.movedim(self.batch_dim, 0)
        if self.granularity == "neuron" and x.shape[1:] != self.sigma.shape:
            raise InputError(self._other_shape(x))
        key, draws, repeats = stream.next_call(self.number)
        if repeats is not None:
            x = repeats(x)
        try:
            y = self.noisy(x, key, draws) if self._sampler is None else self._sampler(self, x, key, draws)
        except InputError as error:
            raise InputError(f"{self.path or 'NeuronNoise'}: {error}") from error
        return y.movedim(0, self.batch_dim).contiguous() if self.batch_dim else y

    def noisy(self, x: Tensor, key: Tensor, draws: int) -> Tensor:
        """Eq. 1 for x (draws * B, *neurons), batch first; layers with noise of another form replace it."""
        if self.estimator == "likelihood-ratio":
            return likelihood_ratio.sample(x, self.sigma, self.mu, key, draws, self.stream)
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

    def _silent(self, x: Tensor) -> Tensor:
        """The mean stays when the noise is off: it is a bias."""
        if self.mu is None:
            return x
        return (x.movedim(self.batch_dim, 0) + self.mu).to(x.dtype).movedim(0, self.batch_dim)

    def _other_shape(self, x: Tensor) -> str:
        return (
            f"{self.path}: there is a sigma for each neuron of {tuple(self.sigma.shape)}, but this call has neurons "
            f"{tuple(x.shape[1:])}; for inputs of changing size call add_noise with granularity='channel'"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as any module, but leave sigma and mu in float32 or wider."""
        return super()._apply(lambda t: _wide_enough(t, fn(t)), recurse)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        learned = "learned" if isinstance(self.sigma, nn.Parameter) else "fixed"
        return f"{tuple(self.sigma.shape)}, {learned}, at_inference={self.at_inference}"


def _size(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        size = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        size = (-1,)
    if any(n < 0 for n in size):
        raise InputError(
            f"NeuronNoise got the shape {shape!r}; pass the sizes of sigma, whole numbers such as (64, 1, 1)"
        )
    return size


def _wide_enough(before: Tensor, after: Tensor) -> Tensor:
    """What a cast made of a tensor, unless that is narrower than float32."""
    if after.is_floating_point() and after.dtype.itemsize < 4:
        return before.to(after.device, torch.float32)
    return after


def _known(estimator: Estimator) -> Estimator:
    if estimator not in ("pathwise", "likelihood-ratio"):
        raise InputError(f"NeuronNoise got estimator={estimator!r}; choose 'pathwise' or 'likelihood-ratio'")
    return estimator


def is_level(init: Any) -> bool:
    """Whether sigma can start there: at one number that float32 holds, so neither infinite nor NaN."""
    return isinstance(init, numbers.Real) and bool(abs(cast(Any, init)) <= torch.finfo(torch.float32).max)


def _start(size: tuple[int, ...], init: Init) -> Tensor:
    if init == "normal":
        return torch.randn(size)
    if not is_level(init):
        raise InputError(f"NeuronNoise got init={init!r}; pass a finite number, or 'normal' for draws from N(0, 1)")
    return torch.full(size, float(init))
