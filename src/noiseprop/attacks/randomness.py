"""Randomness of a network that noiseprop did not add: dropout that is on, Bayesian layers, random transformations."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noiseprop.noise.sampling import sampling

_TRIALS = 3  # passes that are compared with the first one
_IMAGES = 4
_ROUNDING = 64  # nondeterministic kernels differ by a few units in the last place

# models under attack, with images for the trial and its outcome, if it was made
_under_attack: ContextVar[dict[int, list[Any]] | None] = ContextVar("_under_attack", default=None)


def has_foreign_randomness(model: nn.Module) -> bool:
    """Return whether passes of a model differ for other reasons than its noise layers.

    The first question inside `recognise_randomness` makes the trial; outside it the answer is False.
    """
    entry = (_under_attack.get() or {}).get(id(model))
    if entry is None:
        return False
    if entry[1] is None:
        entry[1] = detect_foreign_randomness(model, entry[0])
    return entry[1]


@contextmanager
def recognise_randomness(model: nn.Module, x: Tensor) -> Generator[None]:
    """Let `has_foreign_randomness` answer for a model inside a block, by a trial on some images.

    Args:
        model: images (B, ...) to logits, in the modes in which it will be used.
        x: images (B, ...).
    """
    token = _under_attack.set({**(_under_attack.get() or {}), id(model): [x, None]})
    try:
        yield
    finally:
        _under_attack.reset(token)


@torch.no_grad()
def detect_foreign_randomness(model: nn.Module, x: Tensor) -> bool:
    """Return whether passes of a model on the same images differ while its noise layers repeat their noise.

    The random states of torch, NumPy and Python and the noise of the model are as before afterwards.
    """
    with keep_random_states(), sampling(model, "frozen", key=0):
        try:
            first = model(x[:_IMAGES].clone())
            x = x[:_IMAGES]
        except (RuntimeError, IndexError, ValueError):  # a model for batches of one size
            first = model(x.clone())
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return False  # the checks of the logits explain it
        scale = first.abs().max() * torch.finfo(first.dtype).eps * _ROUNDING
        return any(bool(((model(x.clone()) - first).abs() > scale).any()) for _ in range(_TRIALS))


@contextmanager
def keep_random_states(seed: int | None = None) -> Generator[None]:
    """Restore the random states of torch (all devices), NumPy and Python after a block.

    Args:
        seed: of all of them inside the block; None continues with the present states.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
