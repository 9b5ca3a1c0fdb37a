"""Starting points in the ball, and the choice between the results of several runs."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import CROSS_ENTROPY, SCORE_DRAWS, expected_loss, is_random
from noiseprop.attacks.losses import AttackGoal
from noiseprop.errors import InputError

# Runs an attack from a start (n, ...) on the images at the indices `rows` (n,) of the batch, and returns its result.
Ascent = Callable[[Tensor, Tensor], Tensor]

_early_stop_forbidden = ContextVar("_early_stop_forbidden", default=False)


def select_best_restart(
    model: nn.Module,
    y: Tensor,
    starts: Iterator[Tensor],
    ascend: Ascent,
    *,
    draws: int,
    stop: bool,
    goal: AttackGoal = CROSS_ENTROPY,
) -> Tensor:
    """Run an attack from each start and keep, for every image, the result of highest expected loss.

    Results of a random network are compared by fresh draws (at least SCORE_DRAWS of them), which no run has seen, so
    that no run wins because of lucky noise. A single start is not scored.

    Args:
        model: the network under attack, inside `prepare_for_attack`.
        y: labels (B,).
        starts: whole batches of starting points (B, ...), at least one.
        ascend: the attack, from (start, rows) to adversarial images.
        draws: noise draws of the attack.
        stop: only images that no run has broken yet are run again, and a result that is broken wins.
        goal: the loss of the attack, by which its runs are compared.
    """
    rows = torch.arange(len(y), device=y.device)
    best = ascend(next(starts), rows)
    score: tuple[Tensor, Tensor] | None = None
    for start in starts:
        loss, broken = score = score or _score_candidates(model, best, y, draws, goal)
        if stop:
            rows = (~broken).nonzero()[:, 0]
            if not len(rows):
                break
        new = ascend(start[rows], rows)
        new_loss, new_broken = _score_candidates(model, new, y[rows], draws, goal)
        better = (new_loss > loss[rows]) | (new_broken & stop)
        chosen = rows[better]
        best[chosen], loss[chosen], broken[chosen] = new[better], new_loss[better], new_broken[better]
    return best


def compare_candidates(
    model: nn.Module, y: Tensor, new: Tensor, old: Tensor, *, draws: int, goal: AttackGoal = CROSS_ENTROPY
) -> tuple[Tensor, Tensor]:
    """Return whether `new` (n, ...) has a higher expected loss over fresh draws than `old`, and the higher loss."""
    (loss_new, _), (loss_old, _) = (_score_candidates(model, images, y, draws, goal) for images in (new, old))
    return loss_new > loss_old, torch.maximum(loss_new, loss_old)


def sample_start_points(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    eps: float,
    restarts: int,
    from_image: bool,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Yield `restarts` batches of starting points: the images first (`from_image`), then uniform in the ball.

    Without a generator the points come from a copy of torch's global random state, so two calls with the same state
    start at the same points; pass a generator if they must differ.
    """
    if generator is None:
        generator = torch.Generator().set_state(torch.get_rng_state())
    for restart in range(restarts):
        if from_image and restart == 0:
            yield x
        else:
            noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
            yield x.add(noise.mul_(2).sub_(1), alpha=eps).clamp_(low, high)


@contextmanager
def forbid_early_stop() -> Generator[None]:
    """Make `stop_when_broken` an error inside the block, whose images are for another model."""
    before = _early_stop_forbidden.set(True)
    try:
        yield
    finally:
        _early_stop_forbidden.reset(before)


def check_early_stop(model: nn.Module, stop_when_broken: bool) -> None:
    """Raise an InputError if `stop_when_broken` is set for a network whose noise is on, or for a transfer."""
    if stop_when_broken and _early_stop_forbidden.get():
        raise InputError(
            "transfer: the attack has stop_when_broken set, but images that barely break the surrogate transfer badly; "
            "leave it off when crafting for another model"
        )
    if stop_when_broken and is_random(model):
        raise InputError(
            "attacks: stop_when_broken is set, but the model's noise is on and a miss may be the luck of one draw; "
            "leave it off, or silence the noise with sampling(model, 'off')"
        )


def _score_candidates(
    model: nn.Module, x_adv: Tensor, y: Tensor, draws: int, goal: AttackGoal
) -> tuple[Tensor, Tensor]:
    """Return the expected loss (n,) of each image, and whether its mean logits over draws miss the label (n,)."""
    draws = max(draws, SCORE_DRAWS) if is_random(model) else 1
    loss, logits = expected_loss(model, x_adv, y, draws=draws, goal=goal)
    return loss, logits.mean(0).argmax(-1) != y
