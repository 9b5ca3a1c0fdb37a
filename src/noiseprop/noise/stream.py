"""Key of each call of a noise layer: (seed, pass, layer, call within the pass, sample).

Every layer owns its seed and the number of its next pass, in the buffer ``key`` of its state dict. The layers that
`add_noise` gives a model share the seed and differ in their number. A pass of a layer is a call of the model that the
noise was added to. A call of the layer outside such a call, by a part of the model or by a wrapper that calls
`model.forward`, counts as a pass by itself. The functions here find the layers through the module that they are given,
so they work for any part of a model and any module around it.

Noise draws no numbers from torch's generators, with one exception: a call that may be run again in a backward pass
draws one number from the global CPU generator, which identifies the call. These are calls inside a checkpointed block,
inside the forward of any `torch.autograd.Function`, and under any `saved_tensors_hooks`, such as `save_on_cpu`.
Therefore the masks of dropout differ with and without checkpoints.

Equal seeds give equal noise: two models with the default key, or two forked processes with copies of one model, draw
the same noise. To draw new seeds from torch's generator, call `reset_noise(model, None)` in each, for example in the
`worker_init_fn` of a DataLoader.
"""

# torch has no public way to ask whether a graph is being run backwards:
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import hashlib
import operator
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist

from noiseprop.errors import InputError, NoisepropError, NoisepropWarning
from noiseprop.noise.attach.deferred import check_noise_exists
from noiseprop.noise.gaussian_noise import KEY_LENGTH, copy_key
from noiseprop.noise.kernels import functorch as transforms
from noiseprop.noise.sampling_state import LayerState, NoiseCall, PassScope

_SEED, _PASS, _LAYER, _CALL, _FIRST = range(KEY_LENGTH)
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: distant seeds for layers of different seeds
_REMEMBERED = 1 << 14  # calls of a layer inside checkpointed blocks whose keys are kept for their recomputation


class NoiseSource(nn.Module):
    """Module that owns a random stream: a seed, its number among the layers of a model, and its next pass.

    Args:
        seed: seed of the stream.
        number: number of the layer.
        scope: pass of the model that the layer belongs to.

    Attributes:
        key: int64 (5,): seed, next pass, number of the layer, and two zeros.
        same_on_all_ranks: draw the same noise in every process of a torch.distributed job. By default the samples of a
            process follow those of the process of the next lower rank, as in one process with the whole batch.
    """

    key: Tensor
    _units: Tensor

    def __init__(self, seed: int, number: int = 0, scope: PassScope | None = None) -> None:
        super().__init__()
        self.register_buffer("key", make_key(seed, number=number))
        self.register_buffer("_units", torch.eye(KEY_LENGTH, dtype=torch.int64), persistent=False)
        self.register_buffer("_one_pass", self._units[_PASS].clone(), persistent=False)  # for speed
        self.seed, self.number = seed, number  # as in the key, for use without a copy from a GPU
        self.scope = PassScope() if scope is None else scope
        self.state = LayerState()
        self.same_on_all_ranks = False

    @property
    def next_pass(self) -> int:
        """Number of the pass that the next call starts."""
        return int(self.key[_PASS])

    def set_seed(self, seed: int, *, number: int | None = None, next_pass: int = 0) -> None:
        """Continue with a pass of another seed, and optionally as another layer."""
        self.seed = seed
        self.number = self.number if number is None else number
        self.key.copy_(self.compose_key(seed, next_pass))
        self.state.apart = (0, 0, 0)

    def compose_key(self, seed: int, number_of_pass: int = 0) -> Tensor:
        """Return the key of this layer for a seed and a pass, on its device and without a copy from the host."""
        units = self._units
        return units[_SEED] * seed + units[_PASS] * number_of_pass + units[_LAYER] * self.number

    def next_call(self, rows: int) -> NoiseCall:
        """Return the key of the next call, its number of draws, and the function that repeats its input for them.

        Args:
            rows: samples in the input of the call, copies for several draws included.
        """
        if torch.compiler.is_compiling() or not _may_be_checkpointed():
            return self._draw_call(rows)
        return self._recall(rows)

    def _draw_call(self, rows: int) -> NoiseCall:
        sampling = self.state.sampling
        draws = None if sampling is None else sampling.layer_draws
        key = self._draw_key(draws or 1)
        if sampling is None or draws is None:
            return self._add_first_sample(key, rows), 1, None
        if not sampling.is_running:
            raise InputError(
                f"sampling with draws={draws}: a part of the model ran without the model itself; pass sampling the "
                "module that you call"
            )
        if sampling.claim_repeat():
            return self._add_first_sample(key, rows), draws, sampling.repeat
        return self._add_first_sample(key, rows // draws), draws, None

    def _draw_key(self, draws: int) -> Tensor:
        """Return the key of a call, of which there may be several in a pass."""
        calls = self.scope.calls
        if calls is None:
            return self._start_pass(draws)
        if self.number not in calls:
            calls[self.number] = (self._start_pass(draws), 0)
            return calls[self.number][0]
        key, last = calls[self.number]
        calls[self.number] = (key, last + 1)
        return key + (last + 1) * self._units[_CALL]

    def _start_pass(self, draws: int) -> Tensor:
        state = self.state
        if state.frozen is not None:
            offset = 0 if state.sampling is None else state.sampling.pass_offset
            return state.frozen + offset * self._units[_PASS] if offset else state.frozen
        key, one_pass = self._buffers["key"], self._buffers["_one_pass"]  # faster than attributes
        assert key is not None
        assert one_pass is not None
        start = copy_key(key)  # before the next line advances it
        if not torch.compiler.is_compiling() and transforms.are_transforms_active():
            transforms.advance_pass(key, one_pass, draws)
        else:
            key.add_(one_pass, alpha=draws)
        return start

    def _add_first_sample(self, key: Tensor, rows: int) -> Tensor:
        first = self.state.first_sample
        if first is None:
            first = 0 if self.same_on_all_ranks else _get_rank() * rows
        return key + first * self._units[_FIRST] if first else key

    def _recall(self, rows: int) -> NoiseCall:
        """Inside a checkpointed block, return the same key and draws in the recomputation as in the forward pass.

        `checkpoint` restores torch's global random state before it runs a block again, so a number drawn from it
        identifies this call, in whatever order, and however late, blocks and passes are recomputed.
        """
        name, remembered = int(torch.empty((), dtype=torch.int64).random_().item()), self.state.remembered
        if torch._C._current_graph_task_id() == -1:  # the forward pass
            call = remembered[name] = self._draw_call(rows)
            if len(remembered) > _REMEMBERED:
                remembered.popitem(last=False)
            return call
        if name not in remembered:
            raise NoisepropError(
                "a noise layer was run again in the backward pass, but not with the random state of its forward pass; "
                "use torch.utils.checkpoint with preserve_rng_state=True and use_reentrant=False"
            )
        return remembered[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as any module, but keep integers, also under `model.type(torch.float64)`."""
        return super()._apply(lambda tensor: _keep_integers(tensor, fn(tensor)), recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.key.is_meta:
            self.seed, _, self.number, *_ = self.key.tolist()
        self.state.apart = (0, 0, 0)  # as in a process that has just started


def make_key(seed: object, *, number: int = 0) -> Tensor:
    """Return the key of pass 0 of a layer.

    Raises:
        InputError: the seed is not an integer.
    """
    key = torch.zeros(KEY_LENGTH, dtype=torch.int64)
    key[_SEED], key[_LAYER] = wrap_seed(seed), number
    return key


def wrap_seed(seed: object, group: int = 0) -> int:
    """Return a seed as a signed 64-bit integer; each group of layers with a common seed gets a different one.

    Raises:
        InputError: the seed is not an integer.
    """
    try:
        whole = operator.index(seed)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise InputError(f"noise got the key {seed!r}; pass a whole number, such as key=0") from None
    return (whole + group * _GOLDEN + 2**63) % 2**64 - 2**63


def draw_seed() -> int:
    """Draw a seed from torch's global generator."""
    return int(torch.randint(2**62, ()).item())


def find_sources(model: nn.Module) -> list[NoiseSource]:
    """Return all noise layers inside a module, each with a stream of its own.

    Layers with the same seed and number, such as the copies of one layer in `nn.TransformerEncoder`, get new numbers,
    with a warning.

    Raises:
        InputError: the noise is deferred until a first batch, so there is no layer yet.
    """
    check_noise_exists(model)
    sources = [module for module in model.modules() if isinstance(module, NoiseSource)]
    if len({(source.seed, source.number) for source in sources}) < len(sources):
        _separate_copies(model, sources)
    return sources


def _separate_copies(model: nn.Module, sources: Sequence[NoiseSource]) -> None:
    known: set[tuple[int, int]] = set()
    free = 1 + max(source.number for source in sources)
    for source in sources:
        if (source.seed, source.number) in known:
            source.set_seed(source.seed, number=free, next_pass=source.next_pass)
            free += 1
        known.add((source.seed, source.number))
    warnings.warn(
        f"{type(model).__name__}: copies of a noise layer drew the same noise; they have independent noise from now on",
        NoisepropWarning,
        stacklevel=4,
    )


def reset_noise(model: nn.Module, key: int | None) -> None:
    """Restart a model's noise at pass 0 of the seed `key`, so that the following passes can be repeated.

    Args:
        model: any module; without noise nothing happens.
        key: an integer, as in `add_noise`; None draws one from torch's global generator.

    Raises:
        InputError: the noise is deferred until a first batch, or the key is not an integer.

    Examples:
        >>> import noiseprop
        >>> net = noiseprop.add_noise(nn.Linear(4, 3), [""], example=torch.zeros(1, 4))
        >>> reset_noise(net, 5)
        >>> first, second = net(torch.ones(2, 4)), net(torch.ones(2, 4))
        >>> reset_noise(net, 5)
        >>> torch.equal(net(torch.ones(2, 4)), first), torch.equal(first, second)
        (True, False)
    """
    sources = find_sources(model)
    for source, seed in zip(sources, derive_seeds(sources, draw_seed() if key is None else key), strict=True):
        source.set_seed(seed)


def derive_seeds(sources: Sequence[NoiseSource], key: int) -> list[int]:
    """Return a new seed for each layer, derived from a key; layers with equal seeds get equal ones.

    Raises:
        InputError: the key is not an integer.
    """
    wrap_seed(key)  # also without any layer
    groups: dict[int, int] = {}
    return [wrap_seed(key, groups.setdefault(source.seed, len(groups))) for source in sources]


@contextmanager
def noise_kept(model: nn.Module) -> Generator[None]:
    """Restore the position of a model's noise at the end of a block, also after an exception."""
    places = [
        (source, source.key.clone(), source.seed, source.number, source.state.apart) for source in find_sources(model)
    ]
    try:
        yield
    finally:
        for source, key, seed, number, apart in places:
            source.key.copy_(key)
            source.seed, source.number, source.state.apart = seed, number, apart


@contextmanager
def noise_of(model: nn.Module, first: int) -> Generator[None]:
    """Let the passes of a block draw the noise of samples from number `first` on, and restore the noise at its end.

    A batch can then go through a model in pieces, here or in several processes, with the noise that it has as a whole.
    A block inside another one counts from the first sample of the outer block.
    """
    sources = find_sources(model)
    before = [source.state.first_sample for source in sources]
    with noise_kept(model):
        set_first_sample(sources, first)
        try:
            yield
        finally:
            for source, previous in zip(sources, before, strict=True):
                source.state.first_sample = previous


def set_first_sample(sources: Sequence[NoiseSource], first: int | None, *, relative: bool = True) -> None:
    """Set the position of the next samples in the whole batch.

    Args:
        sources: noise layers.
        first: the position, or None to derive it from the process's rank.
        relative: count from the position that is set already, if any.
    """
    for source in sources:
        base = source.state.first_sample if relative else 0
        source.state.first_sample = None if first is None else (base or 0) + first


@contextmanager
def noise_apart(model: nn.Module) -> Generator[None]:
    """Let the passes of a block draw other noise than all passes outside, whose noise is as if there were no block.

    The seed of that noise is derived from a layer's seed and next pass, so it can be repeated like the noise of other
    passes. Successive blocks without a pass in between draw different noise: each continues where the last one ended,
    until `reset_noise` or until a state is loaded.
    """
    sources = find_sources(model)
    keys = [source.key.clone() for source in sources]
    places = [(seed, number) for seed, number, *_ in (torch.stack(keys).tolist() if keys else ())]
    for source, (seed, number) in zip(sources, places, strict=True):
        made = source.state.apart[2] if source.state.apart[:2] == (seed, number) else 0
        source.key.copy_(source.compose_key(_derive_seed_apart(seed, number), made))
    try:
        yield
    finally:
        made = torch.stack([source.key for source in sources]).tolist() if sources else []
        for source, key, place, (_, passes, *_) in zip(sources, keys, places, made, strict=True):
            source.state.apart = (*place, passes)
            source.key.copy_(key)


def _derive_seed_apart(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"apart from seed {seed}, pass {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _keep_integers(before: Tensor, after: Tensor) -> Tensor:
    return after if before.is_floating_point() or after.dtype == before.dtype else before.to(after.device)


def _get_rank() -> int:
    """Return the rank of this process in a torch.distributed job, otherwise 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _may_be_checkpointed() -> bool:
    """Return whether this call may belong to a block that is, or will be, run again in a backward pass."""
    if torch._C._current_graph_task_id() != -1:
        return True
    if not torch.is_grad_enabled():
        return _is_inside_function()
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _is_inside_function() -> bool:
    """Return whether the forward of an autograd function is running, as in a block of a reentrant checkpoint.

    Only the frames of the callers distinguish such a block from a plain pass without gradients. Libraries with other
    checkpoints derive them from torch's, so any function counts.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount and code.co_varnames[0] == "ctx":
            return True
        frame = frame.f_back
    return False
