"""``sampling``: noise that is fresh, off or frozen, and K draws of it in one pass."""

import warnings
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves, tree_map_only

from noiseprop.errors import InputError
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.stream import NoiseStream, noise_streams, seed_key

Mode = Literal["fresh", "off", "frozen"]

# by model, and by which of its noise layers act
_shares_prefix: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[bool, ...], bool]]" = weakref.WeakKeyDictionary()


class Sampling:
    """What one `sampling` block asks of the noise layers inside it.

    Attributes:
        off: no layer adds noise.
        draws: K, or None when logits keep their shape.
    """

    def __init__(self, *, off: bool, draws: int | None) -> None:
        self.off = off
        self.draws = draws
        self.repeated = False

    def first(self) -> bool:
        """Whether it is the first noise layer of a pass that asks; that one repeats its batch."""
        first, self.repeated = not self.repeated, True
        return first

    def repeat(self, x: Tensor) -> Tensor:
        """K copies of a batch (B, ...), one after another: (K*B, ...)."""
        assert self.draws is not None
        return _repeat(x, self.draws)


@contextmanager
def sampling(
    model: nn.Module, mode: Mode = "fresh", *, draws: int | None = None, key: int | None = None
) -> Generator[None]:
    """Choose what the noise of a model does, and how many draws of it a pass makes.

    With ``draws=K`` the first noise layer that runs repeats its batch K times, so that all before it (a whole
    convolutional trunk, where noise is only in the head) runs once, forward and backward. With equal keys the result
    equals K separate passes. Where sharing would change the result (a noisy branch that meets a noise-free one, as
    in residual blocks) the input is repeated instead, and a warning says so once per model.

    Args:
        model: any module, noisy or not.
        mode: "fresh" noise in every pass, "off", or "frozen": the same noise in every pass, chosen by `key`.
        draws: K; outputs then have shape (K, B, ...). None keeps (B, ...).
        key: the seed of frozen noise.

    Raises:
        InputError: an unknown mode, draws < 1, a frozen mode without a key, or draws with batch norm in training mode.

    Examples:
        >>> import noiseprop
        >>> model = noiseprop.add_noise(nn.Linear(3, 2), where=[""], example=torch.zeros(1, 3))
        >>> with sampling(model, draws=5):
        ...     model(torch.zeros(4, 3)).shape
        torch.Size([5, 4, 2])
    """
    state = _state(mode, draws, key)
    streams = noise_streams(model)
    before = [(stream.sampling, stream.frozen) for stream in streams]
    handles = [] if draws is None else _shape_hooks(model, state, streams)
    for number, stream in enumerate(streams):
        stream.sampling = state
        stream.frozen = None if key is None else seed_key(key, number)
        stream.end()
    outer, model.__dict__["_sampling"] = model.__dict__.get("_sampling"), state
    try:
        yield
    finally:
        model.__dict__["_sampling"] = outer
        if outer is None:
            del model.__dict__["_sampling"]
        for stream, previous in zip(streams, before, strict=True):
            stream.sampling, stream.frozen = previous
            stream.end()
        for handle in handles:
            handle.remove()


def _state(mode: Mode, draws: int | None, key: int | None) -> Sampling:
    if mode not in ("fresh", "off", "frozen"):
        raise InputError(f"sampling got mode {mode!r}; choose 'fresh', 'off' or 'frozen'")
    if draws is not None and (not hasattr(draws, "__index__") or draws < 1):
        raise InputError(f"sampling got draws={draws!r}; pass 1 or more, or None to keep the outputs' shape")
    if (mode == "frozen") != (key is not None):
        raise InputError(
            f"sampling got mode {mode!r} with key={key}; frozen noise, and only that, needs a key such as key=0"
        )
    if key is not None:
        seed_key(key)  # refuses what is no whole number before anything is changed
    return Sampling(off=mode == "off", draws=draws)


def _shape_hooks(model: nn.Module, state: Sampling, streams: list[NoiseStream]) -> list[Any]:
    """Hooks on the model's call: count one pass, and give the outputs their axis of draws."""
    draws = state.draws
    assert draws is not None

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module.__dict__.get("_sampling") is not state:
            return None  # an inner block has taken over
        state.repeated = False
        _refuse_batch_norm(module)
        if not streams or state.off or shares_prefix(module, args, kwargs, streams):
            return None
        state.repeated = True
        batch = _batch(args, kwargs)
        return _map_batch((args, kwargs), batch, lambda x: _repeat(x, draws))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module.__dict__.get("_sampling") is not state:
            return None
        if state.repeated:
            return tree_map_only(Tensor, lambda x: _split(x, draws), output)
        return tree_map_only(Tensor, lambda x: x.expand(draws, *x.shape), output)

    return [
        model.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]


def shares_prefix(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], streams: list[NoiseStream]) -> bool:
    """Whether repeating the batch at the first noise layer equals repeating the input; tried once per model."""
    acting = tuple(m.training or m.at_inference for m in model.modules() if isinstance(m, NeuronNoise))
    known = _shares_prefix.setdefault(model, {})
    if acting not in known:
        agrees = _try_shared(model, args, kwargs, streams)
        if agrees is None:
            return True
        if not agrees:
            _refuse_time_first(model)
        told = False in known.values()
        known[acting] = agrees
        if not agrees and not told:
            warnings.warn(
                f"{type(model).__name__}: a noisy branch meets a noise-free one, so draws cannot share what "
                "comes before the noise; the input is repeated instead, at the full price of every draw",
                stacklevel=2,
            )
    return known[acting]


def forget_prefix(model: nn.Module) -> None:
    """Try again after the noise of a model has changed place."""
    _shares_prefix.pop(model, None)


@torch.no_grad()
def _try_shared(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], streams: list[NoiseStream]
) -> bool | None:
    """Whether three draws of two samples, shared and repeated, agree; None where no noise acts.

    Raises:
        InputError: neither equals three separate passes, as where edges of a graph lead from sample to sample.
    """
    inputs = _map_batch((args, kwargs), _batch(args, kwargs), lambda x: torch.cat([x[:1], x[-1:]]))
    trial, single = Sampling(off=False, draws=3), Sampling(off=False, draws=None)
    with _on_trial(model, streams) as run:
        shared = _tried(run, trial, inputs)
        if shared is not None and not trial.repeated:
            return None
        trial.repeated = True
        repeated = _tried(run, trial, _map_batch(inputs, 2, lambda x: _repeat(x, 3)))
        if repeated is None:
            _refuse_time_first(model)
        try:
            passes = [run(single, inputs, passes=draw) for draw in range(3)]
        except (RuntimeError, IndexError) as error:
            raise InputError(f"{_alone(model)} ({type(error).__name__}: {error}); {_ONE_BY_ONE}") from error
        if not _close(repeated, _side_by_side(passes)) and _close(passes[0], run(single, inputs, seed=1)):
            _refuse_time_first(model)
            raise InputError(f"{_alone(model)}; {_ONE_BY_ONE}")
    return _close(shared, repeated)


_ONE_BY_ONE = "call the model once per draw: torch.stack([model(x) for _ in range(K)])"


def _alone(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} cannot be given several draws in one pass, as samples depend on each other, like "
        "the nodes of a graph, or on how many there are"
    )


@contextmanager
def _on_trial(model: nn.Module, streams: list[NoiseStream]) -> Generator[Any]:
    """A way to run the model with noise of the trial's own, which leaves the model and torch's generator alone."""
    before = [(stream.sampling, stream.frozen) for stream in streams]
    outer = model.__dict__.get("_sampling")

    def run(state: Sampling, inputs: Any, *, passes: int = 0, seed: int = 0) -> list[Tensor]:
        model.__dict__["_sampling"] = state  # silences the hooks of the block around
        for number, stream in enumerate(streams):
            stream.sampling, stream.frozen = state, seed_key(1, number)
            stream.frozen[1] = passes
        args, kwargs = tree_map_only(Tensor, Tensor.clone, inputs)  # the model may change its inputs in place
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]

    try:
        yield run
    finally:
        model.__dict__["_sampling"] = outer
        for stream, previous in zip(streams, before, strict=True):
            stream.sampling, stream.frozen = previous


def _tried(run: Any, trial: Sampling, inputs: Any) -> list[Tensor] | None:
    try:
        return run(trial, inputs)
    except (RuntimeError, ValueError, IndexError):
        return None


def _close(some: list[Tensor] | None, others: list[Tensor] | None) -> bool:
    """Whether two lists of outputs have equal shapes and nearly equal numbers; NaN, of which others tell, is NaN."""
    if some is None or others is None:
        return False
    return len(some) == len(others) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3 * (1 + _largest(b)), equal_nan=True)
        for a, b in zip(some, others, strict=True)
        if a.is_floating_point()
    )


def _largest(x: Tensor) -> float:
    """The size of the largest number in x, NaN and infinities aside."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _side_by_side(passes: list[list[Tensor]]) -> list[Tensor]:
    """The outputs of K passes in the form of K draws."""
    return [torch.cat(leaves) if leaves[0].dim() else leaves[0] for leaves in zip(*passes, strict=True)]


def _refuse_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"{name} is a batch norm in training mode, which would mix the draws; call model.eval() first"
            )


def _refuse_time_first(model: nn.Module) -> None:
    """The inputs of a time-first model have their batch on another axis than the one that would be repeated."""
    for name, module in model.named_modules():
        if getattr(module, "batch_dim", 0) and isinstance(getattr(module, "stream", None), NoiseStream):
            raise InputError(
                f"{name} has its batch on axis {module.batch_dim}, so it is not known how to repeat the model's input "
                f"for several draws; {_ONE_BY_ONE}"
            )


def _split(x: Tensor, draws: int) -> Tensor:
    """(K*B, ...) as (K, B, ...)."""
    if x.dim() == 0 or x.shape[0] % draws:
        raise InputError(
            f"the model returns a tensor of shape {tuple(x.shape)}, which has no batch axis to hold {draws} draws; "
            "return logits or one loss per sample, or call the model once per draw"
        )
    return x.unflatten(0, (draws, -1))


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    raise InputError("sampling with draws needs a model that is called with at least one batched tensor")


def _map_batch(inputs: Any, batch: int, function: Any) -> Any:
    return tree_map_only(Tensor, lambda x: function(x) if x.dim() > 0 and x.shape[0] == batch else x, inputs)


def _repeat(x: Tensor, draws: int) -> Tensor:
    """K copies of a batch, one after another, in x's memory format: (B, ...) to (K*B, ...)."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x.movedim(1, -1).repeat(draws, 1, 1, 1).movedim(-1, 1)
    return x.repeat(draws, *[1] * (x.dim() - 1))
