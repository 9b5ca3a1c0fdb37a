"""State of the noise that changes with `sampling` blocks and passes, apart from seeds and pass numbers."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NoiseCall = tuple[Tensor, int, Callable[[Tensor], Tensor] | None]
"""Key of a call, its number of draws, and the function that repeats its input for them, if it must."""


class Sampling:
    """Mode of the noise layers inside one `sampling` block.

    Attributes:
        off: no layer adds noise.
        draws: K, or None if outputs keep their shape.
        layer_draws: draws that the layers make in the pass under way: K, or None for one draw.
        repeated: the batch of the pass under way is repeated already.
        is_running: a pass of the model that `sampling` was given is under way.
        pass_offset: number of the separate pass under way, which frozen noise needs.
    """

    def __init__(self, *, off: bool, draws: int | None) -> None:
        self.off = off
        self.draws = self.layer_draws = draws
        self.repeated = False
        self.is_running = False
        self.pass_offset = 0

    def claim_repeat(self) -> bool:
        """Return True for the first noise layer of a pass, which then repeats its batch."""
        first, self.repeated = not self.repeated, True
        return first

    def repeat(self, x: Tensor) -> Tensor:
        """Return K copies of a batch (B, ...), one after another: (K*B, ...)."""
        assert self.draws is not None
        return repeat_batch(x, self.draws)


class PassScope:
    """Pass of a model that is under way, shared by the noise layers that one model was given.

    Its `begin` and `end` are hooks of the model. In between, all calls of a layer belong to one pass and are numbered.
    A call outside, of a part of the model or by a wrapper that calls `forward`, is a pass by itself.

    Attributes:
        calls: by layer number, the key of the layer's first call in this pass and the number of its last call; None
            outside a pass.
        scores: log-densities of the pass (see `noiseprop.noise.likelihood_ratio`).
    """

    def __init__(self) -> None:
        self.calls: dict[int, tuple[Tensor, int]] | None = None
        self.scores: list[Tensor] = []

    def begin(self, *_: Any) -> None:
        """Start a pass; a forward pre-hook."""
        if self.scores and torch.is_grad_enabled():
            self.scores = []
        self.calls = {}

    def end(self, *_: Any) -> None:
        """End a pass; a forward hook."""
        self.calls = None

    def take_scores(self) -> list[Tensor]:
        """Return the scores of the pass, and forget them."""
        scores, self.scores = self.scores, []
        return scores

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pass under way from copies and pickles."""
        return {"calls": None, "scores": []}


class LayerState:
    """State of one noise layer that is not saved, in a plain object, because modules are slow to set attributes.

    Attributes:
        sampling: of the innermost `sampling` block around.
        frozen: the key of every pass inside a block of frozen noise.
        first_sample: position of the first sample in the whole batch, or None to derive it from the process's rank.
        apart: a seed, a pass, and how many passes `noise_apart` has made at that place.
        remembered: calls inside checkpointed blocks, for their recomputation.
    """

    def __init__(self) -> None:
        self.sampling: Sampling | None = None
        self.frozen: Tensor | None = None
        self.first_sample: int | None = None
        self.apart = (0, 0, 0)
        self.remembered: OrderedDict[int, NoiseCall] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Keep only the place of `noise_apart` in copies and pickles."""
        fresh = LayerState()
        fresh.apart = self.apart
        return fresh.__dict__


def repeat_batch(x: Tensor, draws: int) -> Tensor:
    """Return K copies of a batch, one after another, in x's memory format: (B, ...) to (K*B, ...)."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x.movedim(1, -1).repeat(draws, 1, 1, 1).movedim(-1, 1)
    return x.repeat(draws, *[1] * (x.dim() - 1))
