"""Which key each call of each noise layer gets: (seed, pass, layer, call within the pass, sample).

A model has one stream. Its pass advances once per call of the model, so all layers of a pass agree on it, and a block
that is run again in the backward pass (`torch.utils.checkpoint`) can be given the keys that it had.

Noise takes nothing from torch's generators, with one exception: a call that may be run again in a backward pass draws
a number from the global CPU generator, to be known by it. Those are calls inside a checkpointed block, inside the
forward of any `torch.autograd.Function`, and under any `saved_tensors_hooks`, such as `save_on_cpu`. With dropout in
the model its masks are hence others with and without checkpoints.
"""

# torch tells only its private parts whether a graph is being run backwards:
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import hashlib
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from noiseprop.errors import InputError, NoisepropError
from noiseprop.noise.attach.deferred import check_noise_exists
from noiseprop.noise.gaussian_noise import KEY_LENGTH
from noiseprop.noise.kernels import functorch as transforms

if TYPE_CHECKING:
    from noiseprop.noise.sampling import Sampling

_Call = tuple[Tensor, int, Callable[[Tensor], Tensor] | None]

_PASS, _LAYER, _CALL, _FIRST = 1, 2, 3, 4
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: seeds far apart for streams side by side
_REMEMBERED = 1 << 14  # calls inside checkpointed blocks whose keys are kept for their recomputation


class NoiseStream(nn.Module):
    """The source of a model's noise: its seed and the number of the next pass, kept in the state dict as ``key``.

    Attributes:
        key: int64 (5,): seed, next pass, and zeros where a layer puts its own numbers.
        first_sample: global index of this process's first sample, when several share one batch.
    """

    key: Tensor
    _one_pass: Tensor
    _layers: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("key", seed_key(seed))
        self.register_buffer("_one_pass", _one_hot(_PASS), persistent=False)
        self.register_buffer("_layers", layer_keys(1), persistent=False)
        self.first_sample = 0
        self.sampling: Sampling | None = None
        self.frozen: Tensor | None = None  # the key of every pass, inside such a sampling block
        self.apart = (0, 0, 0)  # a seed, a pass, and how many passes `noise_apart` has made at that place
        self.scores: list[Tensor] = []  # of this pass: see noiseprop.noise.likelihood_ratio
        self.now = _Pass()

    def make_room(self, layers: int) -> None:
        """Serve so many layers, numbered from 0."""
        if layers > len(self._layers):
            self._layers = layer_keys(layers).to(self.key.device)

    def begin(self, *_: Any) -> None:
        """Start a pass; a forward pre-hook of the model."""
        sampling, now = self.sampling, self.now
        if self.scores and torch.is_grad_enabled():
            self.scores = []
        now.calls = {}
        start, layers, one_pass = (self._buffers[name] for name in ("key", "_layers", "_one_pass"))
        assert start is not None
        assert layers is not None
        assert one_pass is not None
        if self.frozen is not None:
            keys = self.frozen.to(start.device) + layers
        else:
            keys = start + layers  # before the next line moves on: keys of a pass stay as they are
            passes = 1 if sampling is None or sampling.draws is None else sampling.draws
            if not torch.compiler.is_compiling() and transforms.are_transforms_active():
                transforms.advance_pass(start, one_pass, passes)
            else:
                start.add_(one_pass, alpha=passes)
        if self.first_sample:
            keys = keys + self.first_sample * _one_hot(_FIRST).to(keys.device)
        now.keys = keys.unbind(0)

    def end(self) -> None:
        """End a pass, so that a part of the model that is called by itself takes no key from it."""
        self.now.keys = ()

    def next_call(self, layer: int) -> _Call:
        """The key of a layer's next call in this pass, how many draws it makes, and what repeats its input for them."""
        if torch.compiler.is_compiling() or not _may_be_checkpointed():
            return self._draw(layer)
        return self._recall(layer)

    def _draw(self, layer: int) -> _Call:
        key, sampling = self._draw_key(layer), self.sampling
        if sampling is None or sampling.draws is None:
            return key, 1, None
        return key, sampling.draws, sampling.repeat if sampling.first() else None

    def _draw_key(self, layer: int) -> Tensor:
        now = self.now
        if not now.keys:
            self.begin()  # the layer is called before its model ever was
        call = now.calls.get(layer, 0)
        now.calls[layer] = call + 1
        key = now.keys[layer]
        return key if call == 0 else key + call * _one_hot(_CALL).to(key.device)

    def _recall(self, layer: int) -> _Call:
        """Inside a checkpointed block: the same key and draws in the recomputation as in the forward pass.

        `checkpoint` restores torch's global random state before it runs a block again, so a number drawn from it
        names this very call, in whatever order, and however late, blocks and passes are recomputed.
        """
        name = (layer, int(torch.empty((), dtype=torch.int64).random_().item()))
        if torch._C._current_graph_task_id() == -1:  # the forward pass
            call = self.now.remembered[name] = self._draw(layer)
            if len(self.now.remembered) > _REMEMBERED:
                self.now.remembered.popitem(last=False)
            return call
        if name not in self.now.remembered:
            raise NoisepropError(
                "a noise layer was run again in the backward pass, but not with the random state of its forward pass; "
                "use torch.utils.checkpoint with preserve_rng_state=True and use_reentrant=False"
            )
        return self.now.remembered[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as any module, but stay whole numbers, also under `model.type(torch.float64)`."""
        return super()._apply(lambda t: after if (after := fn(t)).dtype == t.dtype else t.to(after.device), recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.apart = (0, 0, 0)  # as in a process that has just begun

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle keeps: the stream's place, nothing of a pass under way."""
        return self.__dict__ | {"sampling": None, "frozen": None, "scores": [], "now": _Pass()}


class _Pass:
    """What changes with every pass, in an object of its own, since a module's attributes are slow to set."""

    def __init__(self) -> None:
        self.keys: tuple[Tensor, ...] = ()  # by layer
        self.calls: dict[int, int] = {}  # by layer, so far
        self.remembered: OrderedDict[tuple[int, int], _Call] = OrderedDict()


def seed_key(seed: int, stream: int = 0) -> Tensor:
    """The key of a seed: pass 0, zeros for the rest; another seed for each of the streams in one model."""
    try:
        seed = operator.index(seed)
    except TypeError:
        raise InputError(f"noise got the key {seed!r}; pass a whole number, such as key=0") from None
    key = torch.zeros(KEY_LENGTH, dtype=torch.int64)
    key[0] = (seed + stream * _GOLDEN + 2**63) % 2**64 - 2**63
    return key


def layer_keys(layers: int) -> Tensor:
    """What each layer adds to the key of a pass: int64 (layers, 5)."""
    return torch.arange(layers).view(-1, 1) * _one_hot(_LAYER)


def noise_streams(model: nn.Module) -> list[NoiseStream]:
    """All streams inside a model: one in a model given noise once, none in a noise-free one.

    Raises:
        InputError: the noise still waits for a first batch, so that there is no stream yet.
    """
    check_noise_exists(model)
    return [module for module in model.modules() if isinstance(module, NoiseStream)]


def reset_noise(model: nn.Module, key: int) -> None:
    """Start a model's noise again at pass 0 of the seed `key`, so that what follows can be repeated.

    Args:
        model: any module; without noise nothing happens.
        key: a whole number, as in `add_noise`.

    Raises:
        InputError: the noise still waits for a first batch, or the key is no whole number.

    Examples:
        >>> import noiseprop
        >>> net = noiseprop.add_noise(nn.Linear(4, 3), [""], example=torch.zeros(1, 4))
        >>> reset_noise(net, 5)
        >>> first, second = net(torch.ones(2, 4)), net(torch.ones(2, 4))
        >>> reset_noise(net, 5)
        >>> torch.equal(net(torch.ones(2, 4)), first), torch.equal(first, second)
        (True, False)
    """
    for number, stream in enumerate(noise_streams(model)):
        stream.key.copy_(seed_key(key, number))
        stream.apart = (0, 0, 0)
        stream.end()


@contextmanager
def noise_kept(model: nn.Module) -> Generator[None]:
    """Put a model's noise back to where it was at the end of a block, also after an exception."""
    places = [(stream, stream.key.clone(), stream.apart) for stream in noise_streams(model)]
    try:
        yield
    finally:
        for stream, key, apart in places:
            stream.key.copy_(key)
            stream.apart = apart


@contextmanager
def noise_of(model: nn.Module, first: int) -> Generator[None]:
    """Let the passes of a block draw the noise of samples from number `first` on, and put the noise back at its end.

    So a batch goes through a model in pieces, here or in several processes, with the noise that it has as a whole. A
    block inside another one counts from the other's first sample.
    """
    streams = noise_streams(model)
    with noise_kept(model):
        for stream in streams:
            stream.first_sample += first
        try:
            yield
        finally:
            for stream in streams:
                stream.first_sample -= first


@contextmanager
def noise_apart(model: nn.Module) -> Generator[None]:
    """Let the passes of a block draw other noise than any pass outside, where the model's noise stays as it was.

    The seed of that noise follows from the stream's seed and next pass, so that it can be repeated like that of other
    passes. Blocks between which the model makes no pass of its own draw different noise all the same: each goes on
    where the last one ended, until `reset_noise` or until a state is loaded.
    """
    streams = noise_streams(model)
    keys = [stream.key.clone() for stream in streams]
    places = [(seed, number) for seed, number, *_ in (key.tolist() for key in keys)]
    for stream, (seed, number) in zip(streams, places, strict=True):
        made = stream.apart[2] if stream.apart[:2] == (seed, number) else 0
        stream.key.copy_(seed_key(_seed_apart(seed, number)))
        stream.key[_PASS] = made
    try:
        yield
    finally:
        for stream, key, place in zip(streams, keys, places, strict=True):
            stream.apart = (*place, int(stream.key[_PASS]))
            stream.key.copy_(key)


def _seed_apart(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"apart from seed {seed}, pass {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _one_hot(place: int) -> Tensor:
    return torch.tensor([int(i == place) for i in range(KEY_LENGTH)])


def _may_be_checkpointed() -> bool:
    """Whether this call may belong to a block that is, or will be, run again in a backward pass."""
    if torch._C._current_graph_task_id() != -1:
        return True
    if not torch.is_grad_enabled():
        return _inside_a_function()
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _inside_a_function() -> bool:
    """Whether the forward of an autograd function is under way, as it is where a reentrant checkpoint runs its block.

    Nothing but the callers' frames tells such a block from a plain pass without gradients. Libraries with checkpoints
    of their own derive them from torch's, so any function counts.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount and code.co_varnames[0] == "ctx":
            return True
        frame = frame.f_back
    return False
