"""Losses that attacks climb, and how they combine the draws of a random network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from noiseprop.errors import InputError

LossName = Literal["cross-entropy", "normalized-cross-entropy", "margin", "dlr"]
Objective = Literal["mean-loss", "mean-logits"]


@dataclass(frozen=True)
class AttackGoal:
    """Loss that an attack climbs.

    Attributes:
        loss: "cross-entropy"; "normalized-cross-entropy", the same for logits divided by their spread, which does not
            change if all logits are multiplied by a number; "margin", the largest other logit minus that of the label;
            or "dlr", the margin in units of the difference between the largest and the third largest logit.
        objective: "mean-loss" averages the losses of the draws, for a network that answers with a single draw.
            "mean-logits" takes the loss of the mean logits, for one that answers with the vote of many.
    """

    loss: LossName = "cross-entropy"
    objective: Objective = "mean-loss"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"attacks: loss is {self.loss!r}, expected one of {', '.join(map(repr, LOSSES))}")
        if self.objective not in ("mean-loss", "mean-logits"):
            raise InputError(f"attacks: objective is {self.objective!r}, expected 'mean-loss' or 'mean-logits'")

    def compute(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss (B,) of logits (K, B, classes) for labels y (B,), in float32 or wider."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        function = LOSSES[self.loss]
        draws, batch, _ = wide.shape
        if draws == 1:
            return function(wide[0], y)
        if self.objective == "mean-logits":
            return function(wide.mean(0), y)
        return function(wide.flatten(0, 1), y.repeat(draws)).view(draws, batch).mean(0)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy (N,) of logits (N, classes) and labels (N,)."""
    return functional.cross_entropy(logits, y, reduction="none")


def normalized_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of logits divided by their standard deviation over the classes, without its gradient.

    Large logits saturate the softmax, and the gradient of the cross-entropy vanishes in floating point. This loss gives
    the same gradient direction at every scale of the logits.

    Examples:
        >>> logits, y = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
        >>> bool(torch.isclose(normalized_cross_entropy(logits, y), normalized_cross_entropy(1000 * logits, y)))
        True
    """
    spread = logits.detach().std(dim=1, correction=0, keepdim=True)
    return cross_entropy(logits / spread.clamp_min(torch.finfo(logits.dtype).tiny), y)


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return ``max_{c != y} z_c - z_y`` (N,), positive where the label is missed.

    Source: Carlini and Wagner (2017), f_6 without its bound.

    Examples:
        >>> margin_loss(torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio (N,): the margin over the largest minus the third largest logit.

    Source: Croce and Hein (2020), equation 6. With two classes, which have no third logit, the second one counts.

    Examples:
        >>> dlr_loss(torch.tensor([[4.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-0.6667])
    """
    ordered = logits.sort(dim=1, descending=True).values
    span = ordered[:, 0] - ordered[:, min(2, ordered.shape[1] - 1)]
    return margin_loss(logits, y) / (span + 1e-12)


LOSSES: dict[LossName, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "normalized-cross-entropy": normalized_cross_entropy,
    "margin": margin_loss,
    "dlr": dlr_loss,
}
