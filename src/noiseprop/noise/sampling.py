"""``sampling``: noise that is fresh, off or frozen, and K draws of it in one pass."""

import warnings
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from noiseprop.errors import InputError
from noiseprop.noise.layer import NeuronNoise
from noiseprop.noise.sampling_state import Sampling, repeat_batch
from noiseprop.noise.stream import NoiseSource, derive_seeds, find_sources, noise_kept, wrap_seed

Mode = Literal["fresh", "off", "frozen"]
DrawPlan = Literal["share", "repeat", "separate"]
"""Repeat the batch at the first noise layer, repeat the inputs, or make K separate passes."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_PlanKey = tuple[tuple[bool, ...], tuple[int, ...]]  # layers that act, and inputs with as many rows as the batch
_Plan = tuple[DrawPlan, tuple[int, ...]]  # and the inputs that are batched

_plans: "weakref.WeakKeyDictionary[nn.Module, dict[_PlanKey, _Plan]]" = weakref.WeakKeyDictionary()
_innermost: "weakref.WeakKeyDictionary[nn.Module, Sampling]" = weakref.WeakKeyDictionary()  # block of a model


@contextmanager
def sampling(
    model: nn.Module, mode: Mode = "fresh", *, draws: int | None = None, key: int | None = None
) -> Generator[None]:
    """Select the noise of a model, and the number of draws per pass.

    With ``draws=K`` the first noise layer that runs repeats its batch K times, so everything before it (a whole
    convolutional trunk, if only the head has noise) runs once, forward and backward. With equal keys the result equals
    K separate passes. If sharing would change the result (a noisy branch that meets a noise-free one, as in residual
    blocks), the input is repeated instead. If samples depend on each other, or the batch cannot be told apart from
    other inputs, K separate passes are made. A warning reports either once per model.

    Args:
        model: any module, noisy or not: a model, a part of one, or a wrapper. All noise layers inside it are affected.
        mode: "fresh" noise in every pass, "off", or "frozen": the same noise in every pass, selected by `key`.
        draws: K; outputs then have shape (K, B, ...). None keeps (B, ...).
        key: the seed of frozen noise.

    Raises:
        InputError: an unknown mode, draws < 1, a frozen mode without a key, draws with batch norm in training mode, or
            draws of a model that returns a loss averaged over the batch.

    Examples:
        >>> import noiseprop
        >>> model = noiseprop.add_noise(nn.Linear(3, 2), where=[""], example=torch.zeros(1, 3))
        >>> with sampling(model, draws=5):
        ...     model(torch.zeros(4, 3)).shape
        torch.Size([5, 4, 2])
    """
    state = _make_state(mode, draws, key)
    sources = find_sources(model)
    before = [(source.state.sampling, source.state.frozen) for source in sources]
    handles = _register_hooks(model, state, sources, is_frozen=key is not None)
    _set_sampling(sources, state, key)
    outer = _innermost.get(model)
    _innermost[model] = state
    try:
        yield
    finally:
        if outer is None:
            del _innermost[model]
        else:
            _innermost[model] = outer
        for source, (sampling_before, frozen) in zip(sources, before, strict=True):
            source.state.sampling, source.state.frozen = sampling_before, frozen
        for handle in handles:
            handle.remove()


def forget_plans(model: nn.Module) -> None:
    """Forget how a model makes several draws, after its noise has changed place."""
    _plans.pop(model, None)


def _make_state(mode: Mode, draws: int | None, key: int | None) -> Sampling:
    if mode not in ("fresh", "off", "frozen"):
        raise InputError(f"sampling got mode {mode!r}; choose 'fresh', 'off' or 'frozen'")
    if draws is not None and (not hasattr(draws, "__index__") or draws < 1):
        raise InputError(f"sampling got draws={draws!r}; pass 1 or more, or None to keep the outputs' shape")
    if (mode == "frozen") != (key is not None):
        raise InputError(
            f"sampling got mode {mode!r} with key={key}; frozen noise, and only that, needs a key such as key=0"
        )
    if key is not None:
        wrap_seed(key)  # raises before anything is changed
    return Sampling(off=mode == "off", draws=draws)


def _set_sampling(sources: Sequence[NoiseSource], state: Sampling, key: int | None) -> None:
    seeds = [None] * len(sources) if key is None else derive_seeds(sources, key)
    for source, seed in zip(sources, seeds, strict=True):
        source.state.sampling = state
        source.state.frozen = None if seed is None else source.compose_key(seed)


def _register_hooks(model: nn.Module, state: Sampling, sources: Sequence[NoiseSource], *, is_frozen: bool) -> list[Any]:
    """Register hooks on the model that delimit passes of frozen noise, and give the outputs of K draws their axis."""
    handles: list[Any] = []
    if is_frozen:
        frozen = _FrozenPass(sources)
        handles.append(model.register_forward_pre_hook(frozen.begin, prepend=True))
        handles.append(model.register_forward_hook(frozen.end, always_call=True))
    if state.draws is not None:
        runner = _DrawRunner(model, state, sources)
        handles.append(model.register_forward_pre_hook(runner.before_pass, prepend=True, with_kwargs=True))
        handles.append(model.register_forward_hook(runner.after_pass, with_kwargs=True))
    return handles


class _FrozenPass:
    """Hooks of any module that number the calls of each layer inside one call of the module, as a pass does.

    Layers that are called several times would otherwise repeat their frozen noise where the noise was added to another
    module than this one. Copies and pickles of the module are not affected.
    """

    def __init__(self, sources: Sequence[NoiseSource]) -> None:
        self.sources = sources

    def begin(self, *_: Any) -> None:
        """Start a pass where noise is frozen."""
        for source in self.sources:
            if source.state.frozen is not None:
                source.scope.begin()

    def end(self, *_: Any) -> None:
        """End the pass."""
        for source in self.sources:
            source.scope.end()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the layers from copies and pickles."""
        return {"sources": ()}


class _DrawRunner:
    """Hooks that turn one call of a model into K draws.

    Args:
        model: the module that `sampling` was given.
        state: of the block, with draws.
        sources: noise layers of the model.
    """

    def __init__(self, model: nn.Module, state: Sampling, sources: Sequence[NoiseSource]) -> None:
        self.state, self.sources = state, sources
        self.earlier: list[Any] = []  # outputs of separate passes
        self.plan: DrawPlan | None = None
        self.is_nested = False

    def before_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prepare the inputs, or make all separate passes but the last."""
        state = self.state
        if _innermost.get(model) is not state or self.is_nested:
            return None  # a block inside this one has taken over, or this is a copy of the model
        assert state.draws is not None
        _check_batch_norm(model)
        state.repeated, state.is_running, state.layer_draws, state.pass_offset = False, True, state.draws, 0
        self.plan, self.earlier = None, []
        if state.off or not any(_acts(source) for source in self.sources):
            return None
        self.plan, batched = plan_draws(model, (args, kwargs), self.sources)
        if self.plan == "separate":
            self._run_earlier_passes(model, args, kwargs)
            return None
        if self.plan == "share":
            return None
        state.repeated = True
        return _map_batched((args, kwargs), batched, lambda x: repeat_batch(x, state.draws or 1))

    def _run_earlier_passes(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = self.state
        assert state.draws is not None
        state.layer_draws, self.is_nested = None, True
        try:
            for _ in range(state.draws - 1):
                own_args, own_kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
                self.earlier.append(model(*own_args, **own_kwargs))
                state.pass_offset += 1
        finally:
            self.is_nested = False

    def after_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Give the outputs their axis of draws."""
        state = self.state
        if _innermost.get(model) is not state or self.is_nested:
            return None
        draws = state.draws or 1
        state.is_running = False
        if self.plan == "separate":
            return _stack_outputs([*self.earlier, output])
        if state.repeated:
            return tree_map_only(Tensor, lambda x: _split_draws(x, draws), output)
        return tree_map_only(Tensor, lambda x: x.expand(draws, *x.shape), output)


def _acts(source: NoiseSource) -> bool:
    return not isinstance(source, NeuronNoise) or source.training or source.at_inference


def plan_draws(model: nn.Module, inputs: Inputs, sources: Sequence[NoiseSource]) -> tuple[DrawPlan, tuple[int, ...]]:
    """Find, once per model and set of acting layers, how it can make several draws, and which inputs are batched.

    Returns:
        The plan, and the positions of the batched tensors among the leaves of the inputs.
    """
    acting = tuple(_acts(source) for source in sources)
    candidates = _find_batch_candidates(inputs)
    known = _plans.setdefault(model, {})
    if (acting, candidates) not in known:
        plan = _try_plans(model, inputs, candidates, sources)
        if plan is None:
            return "share", candidates  # no noise acted; it may in the next pass
        if plan[0] != "share" and all(other[0] == "share" for other in known.values()):
            _warn_of_full_cost(model, plan[0])
        known[acting, candidates] = plan
    return known[acting, candidates]


def _warn_of_full_cost(model: nn.Module, plan: DrawPlan) -> None:
    name = type(model).__name__
    if plan == "repeat":
        message = (
            f"{name}: a noisy branch meets a noise-free one, so draws cannot share what comes before the noise; the "
            "input is repeated instead, at the full cost of every draw"
        )
    else:
        message = (
            f"{name}: samples depend on each other, the batch cannot be told apart from other inputs, or a noise layer "
            "makes several passes in a call; several draws are made by separate passes, at the full cost of every draw"
        )
    warnings.warn(message, stacklevel=2)


@torch.no_grad()
def _try_plans(
    model: nn.Module, inputs: Inputs, candidates: tuple[int, ...], sources: Sequence[NoiseSource]
) -> _Plan | None:
    """Compare three draws by each plan with three separate passes on two samples; None where no noise acts.

    Raises:
        InputError: the model returns a loss averaged over the batch.
    """
    with _on_trial(model, sources) as run:
        outputs = run(Sampling(off=True, draws=None), inputs)
        _check_no_batch_mean(model, outputs)
        batched = _find_batched(run, inputs, candidates, outputs)
        if batched is None or _has_other_batch_axis(model):
            return "separate", candidates
        small = _map_batched(inputs, batched, lambda x: torch.cat([x[:1], x[-1:]]))
        trial, single = Sampling(off=False, draws=3), Sampling(off=False, draws=None)
        trial.is_running = True
        shared = _run_safely(run, trial, small)
        if shared is not None and not trial.repeated:
            return None
        trial.repeated = True
        repeated = _run_safely(run, trial, _map_batched(small, batched, lambda x: repeat_batch(x, 3)))
        if repeated is None:
            return "separate", batched
        try:
            passes = [run(single, small, passes=draw) for draw in range(3)]
        except (RuntimeError, IndexError):
            return "separate", batched
        if any(source.next_pass > 3 for source in sources):
            return "separate", batched  # draws of several passes would not have the noise of separate calls
        if not _are_close(repeated, _join_passes(passes)) and _are_close(passes[0], run(single, small, seed=1)):
            return "separate", batched
    return ("share" if _are_close(shared, repeated) else "repeat"), batched


@contextmanager
def _on_trial(model: nn.Module, sources: Sequence[NoiseSource]) -> Generator[Any]:
    """Provide a function that runs the model with other noise; leave the model and torch's generator as before."""
    before = [(source.state.sampling, source.state.frozen) for source in sources]
    outer = _innermost.get(model)

    def run(state: Sampling, inputs: Inputs, *, passes: int = 0, seed: int = 0) -> list[Tensor]:
        _innermost[model] = state  # disables the hooks of the block around
        for source, own in zip(sources, derive_seeds(sources, 1), strict=True):
            source.state.sampling, source.state.frozen = state, None
            source.key.copy_(source.compose_key(own, passes))
        args, kwargs = tree_map_only(Tensor, Tensor.clone, inputs)  # the model may change its inputs in place
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]

    try:
        with noise_kept(model):
            yield run
    finally:
        if outer is not None:
            _innermost[model] = outer
        else:
            _innermost.pop(model, None)
        for source, (sampling_before, frozen) in zip(sources, before, strict=True):
            source.state.sampling, source.state.frozen = sampling_before, frozen


def _find_batch_candidates(inputs: Inputs) -> tuple[int, ...]:
    """Return the positions of the tensors with as many rows as the first one, among the leaves of the inputs."""
    leaves = tree_leaves(inputs)
    sizes = {i: leaf.shape[0] for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if not sizes:
        raise InputError("sampling with draws needs a model that is called with at least one batched tensor")
    batch = next(iter(sizes.values()))
    return tuple(i for i, size in sizes.items() if size == batch)


def _find_batched(
    run: Any, inputs: Inputs, candidates: tuple[int, ...], outputs: list[Tensor]
) -> tuple[int, ...] | None:
    """Return which of the candidates are batched: without their other rows, the remaining outputs stay the same.

    A tensor may have as many rows as the batch by chance, such as one prototype for each of five classes beside five
    images. All candidates are tried first, then fewer, always with the first one. None if no choice fits.
    """
    if len(candidates) == 1:
        return candidates
    leaves, _ = tree_flatten(inputs)
    batch = leaves[candidates[0]].shape[0]
    rows = {1: [0, 0], 2: [0]}.get(batch, [0, batch - 1])
    first, *others = candidates
    choices = chain.from_iterable(combinations(others, size) for size in range(len(others), -1, -1))
    for choice in choices:
        chosen = (first, *choice)
        part = _run_safely(run, Sampling(off=True, draws=None), _map_batched(inputs, chosen, lambda x: x[rows]))
        expected = [leaf[rows] if leaf.dim() and leaf.shape[0] == batch else leaf for leaf in outputs]
        if _are_close(part, expected):
            return chosen
    return None


def _check_no_batch_mean(model: nn.Module, outputs: list[Tensor]) -> None:
    if any(output.dim() == 0 and output.is_floating_point() for output in outputs):
        raise InputError(
            f"sampling with draws: {type(model).__name__} returns a single number, such as a loss that is a mean over "
            "the batch, which cannot be split into draws; call it without labels and compute the loss from the logits "
            "of each draw, or call it once per draw"
        )


def _has_other_batch_axis(model: nn.Module) -> bool:
    """Return whether a noise layer has its batch on another axis than the one that would be repeated."""
    return any(isinstance(module, NeuronNoise) and module.batch_dim for module in model.modules())


def _run_safely(run: Any, trial: Sampling, inputs: Inputs) -> list[Tensor] | None:
    try:
        return run(trial, inputs)
    except (RuntimeError, ValueError, IndexError):
        return None


def _are_close(some: list[Tensor] | None, others: list[Tensor] | None) -> bool:
    """Return whether two lists of outputs have equal shapes and nearly equal numbers; NaN equals NaN."""
    if some is None or others is None:
        return False
    return len(some) == len(others) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3 * (1 + _find_largest(b)), equal_nan=True)
        for a, b in zip(some, others, strict=True)
        if a.is_floating_point()
    )


def _find_largest(x: Tensor) -> float:
    """Return the magnitude of the largest finite number in x."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _join_passes(passes: list[list[Tensor]]) -> list[Tensor]:
    """Return the outputs of K passes in the form of K draws."""
    return [torch.cat(leaves) if leaves[0].dim() else leaves[0] for leaves in zip(*passes, strict=True)]


def _stack_outputs(outputs: list[Any]) -> Any:
    """Return the outputs of K passes with an axis of draws: (K, B, ...)."""
    flat = [tree_flatten(output) for output in outputs]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    stacked = [torch.stack(column) if isinstance(column[0], Tensor) else column[-1] for column in columns]
    return tree_unflatten(stacked, flat[-1][1])


def _check_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"{name} is a batch norm in training mode, which would mix the draws; call model.eval() first"
            )


def _split_draws(x: Tensor, draws: int) -> Tensor:
    """Return (K*B, ...) as (K, B, ...)."""
    if x.dim() == 0 or x.shape[0] % draws:
        raise InputError(
            f"the model returns a tensor of shape {tuple(x.shape)}, which has no batch axis to hold {draws} draws; "
            "return logits or one loss per sample, or call the model once per draw"
        )
    return x.unflatten(0, (draws, -1))


def _map_batched(inputs: Inputs, batched: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the leaves of the inputs at some positions."""
    leaves, structure = tree_flatten(inputs)
    return tree_unflatten([function(leaf) if i in batched else leaf for i, leaf in enumerate(leaves)], structure)
