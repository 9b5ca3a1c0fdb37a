"""Projected gradient descent in the L-infinity ball, with restarts."""

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import loss_gradient, prepare_for_attack
from noiseprop.attacks.losses import AttackGoal, LossName, Objective
from noiseprop.attacks.restarts import check_early_stop, sample_start_points, select_best_restart
from noiseprop.attacks.validation import check_count, check_images, check_number, linf_ball


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    random_start: bool = False,
    restarts: int = 1,
    draws: int = 1,
    loss: LossName = "cross-entropy",
    objective: Objective = "mean-loss",
    stop_when_broken: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb the expected loss by signed gradient steps, projected onto the ball of radius eps and onto [0, 1].

    x_{t+1} = P(x_t + step * sign(grad mean_k CE(model(x_t; noise_k), y)))

    Each run returns its last iterate, never the first miss. Of several runs each image keeps the one of highest
    expected loss, scored on a random network with fresh draws.

    The model is attacked in eval mode with its current noise (see `attacks.eot`). Modes, `.grad`, `requires_grad`
    flags, torch's random state and the noise state are restored. The passes of an attack draw noise that no other pass
    draws, neither in training nor when the result is scored.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        eps: radius of the L-infinity ball, in input units.
        step: step size, in input units.
        steps: number of steps.
        random_start: start uniformly in the ball instead of at x. Restarts after the first always do.
        restarts: number of runs.
        draws: noise draws to average each gradient over (EOT); 1 sees a single draw per step.
        loss: the loss to climb, as in `noiseprop.attacks.losses.AttackGoal`.
        objective: "mean-loss" against single draws, "mean-logits" against the vote of many draws.
        stop_when_broken: for the robust accuracy of a deterministic model: an image leaves the batch at its first
            iterate that is misclassified, which saves time. Not for transfer attacks, which need all steps.
        generator: source of random starts; it advances. Without one they come from a copy of torch's global random
            state, so that two calls in a row start at the same points.

    Returns:
        Adversarial images, like x.

    Raises:
        InputError: for arguments out of range, images outside [0, 1], labels out of range, NaN or wrong-shaped logits,
            or stop_when_broken on a model whose noise is on.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> pgd(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), eps=0.5, step=0.25, steps=4)
        tensor([[0.2500, 0.7500]])

    Source: Madry et al. 2018, section 2.1; the expectation, Athalye et al. 2018.
    """
    x, y = check_images(x, y, model)
    eps, step = check_number("eps", eps), check_number("step", step)
    steps, restarts, draws = check_count("steps", steps), check_count("restarts", restarts), check_count("draws", draws)

    goal = AttackGoal(loss, objective)

    with prepare_for_attack(model, x):
        check_early_stop(model, stop_when_broken)
        low, high = linf_ball(x, eps)

        def run_from(start: Tensor, rows: Tensor) -> Tensor:
            box = (low, high) if len(rows) == len(low) else (low[rows], high[rows])
            return _ascend_loss(
                model, start, y[rows], *box, step=step, steps=steps, draws=draws, goal=goal, stop=stop_when_broken
            )

        starts = sample_start_points(
            x, low, high, eps=eps, restarts=restarts, from_image=not random_start, generator=generator
        )
        return select_best_restart(model, y, starts, run_from, draws=draws, stop=stop_when_broken, goal=goal)


def _ascend_loss(
    model: nn.Module,
    start: Tensor,
    y: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    step: float,
    steps: int,
    draws: int,
    goal: AttackGoal,
    stop: bool,
) -> Tensor:
    """Return the result of one run from a start (n, ...); with `stop`, an image leaves at its first miss."""
    result, x_adv = torch.empty_like(start), start.clone()
    rows = torch.arange(len(y), device=y.device)
    for _ in range(steps):
        _, gradient, logits = loss_gradient(model, x_adv, y, draws=draws, goal=goal)
        if stop and not bool((standing := logits[0].argmax(-1) == y).all()):
            broken, keep = (flags.nonzero()[:, 0] for flags in (~standing, standing))
            result[rows[broken]] = x_adv.index_select(0, broken)
            x_adv, gradient, y, low, high, rows = (
                t.index_select(0, keep) for t in (x_adv, gradient, y, low, high, rows)
            )
            if not len(rows):
                return result
        x_adv.add_(gradient.sign_(), alpha=step).clamp_(low, high)
    if len(rows) == len(result):
        return x_adv
    result[rows] = x_adv
    return result
