"""Auto-PGD: PGD with momentum whose step size adapts to every image."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import is_random, loss_gradient, prepare_for_attack
from noiseprop.attacks.losses import AttackGoal, LossName, Objective
from noiseprop.attacks.restarts import check_early_stop, compare_candidates, sample_start_points, select_best_restart
from noiseprop.attacks.validation import check_count, check_images, check_number, linf_ball

# Constants of the paper: weight of the new step against momentum, and the smallest share of rises that keeps the step.
_ALPHA = 0.75
_RHO = 0.75


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 100,
    restarts: int = 1,
    draws: int = 1,
    loss: LossName = "cross-entropy",
    objective: Objective = "mean-loss",
    stop_when_broken: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Climb the expected loss in the ball of radius eps by APGD, which needs no step size.

    z       = P(x_t + step * sign(grad L(x_t)))
    x_{t+1} = P(x_t + 0.75 (z - x_t) + 0.25 (x_t - x_{t-1})),    L(x) = mean_k loss(model(x; noise_k), y)

    from a random start, with step = 2 eps at first. At fixed checkpoints the step of an image is halved, and the image
    returns to its best iterate, if its loss rose in too few of the steps since the last checkpoint or its best loss did
    not improve. Each run returns the iterate of highest expected loss, never the first miss.

    On a random network every estimate of the loss is noisy, and the highest of many estimates is the luckiest. So at
    every checkpoint and at the end the best iterate so far and the latest one are scored again with fresh draws, and
    restarts are compared in the same way.

    The model is attacked in eval mode with its current noise (see `attacks.eot`). Modes, `.grad`, `requires_grad`
    flags, torch's random state and the noise state are restored. The passes of an attack draw noise that no other pass
    draws, neither in training nor when the result is scored.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        eps: radius of the L-infinity ball, in input units.
        steps: steps of each run; it makes steps + 1 gradients.
        restarts: number of runs.
        draws: noise draws to average each gradient over (EOT); 1 sees a single draw per step.
        loss: the loss to climb, as in `noiseprop.attacks.losses.AttackGoal`.
        objective: "mean-loss" against single draws, "mean-logits" against the vote of many draws.
        stop_when_broken: for the robust accuracy of a deterministic model: an image leaves the batch at its first
            iterate that is misclassified, which saves time. Not for transfer attacks, which need all steps.
        generator: source of the starts; it advances. Without one they come from a copy of torch's global random state,
            so that two calls in a row start at the same points.

    Returns:
        Adversarial images, like x.

    Raises:
        InputError: for arguments out of range, images outside [0, 1], labels out of range, NaN or wrong-shaped logits,
            or stop_when_broken on a model whose noise is on.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> apgd(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), eps=0.5, steps=10)
        tensor([[0.2500, 0.7500]])

    Source: Croce and Hein 2020, algorithm 1, in the form of the authors' AutoAttack code. The first checkpoint counts
    the first step as a rise only if it was one, as in the paper; the code always does.
    """
    x, y = check_images(x, y, model)
    eps, steps = check_number("eps", eps), check_count("steps", steps)
    restarts, draws = check_count("restarts", restarts), check_count("draws", draws)

    goal = AttackGoal(loss, objective)

    with prepare_for_attack(model, x):
        check_early_stop(model, stop_when_broken)
        low, high = linf_ball(x, eps)

        def run_from(start: Tensor, rows: Tensor) -> Tensor:
            box = low[rows], high[rows]
            state = _ApgdState.from_start(model, start, y[rows], *box, step=2 * eps, draws=draws, goal=goal)
            return _run_apgd(model, state, steps=steps, draws=draws, goal=goal, stop=stop_when_broken)

        starts = sample_start_points(x, low, high, eps=eps, restarts=restarts, from_image=False, generator=generator)
        return select_best_restart(model, y, starts, run_from, draws=draws, stop=stop_when_broken, goal=goal)


@dataclass
class _ApgdState:
    """State of APGD for each of n images."""

    y: Tensor  # (n,)
    low: Tensor  # (n, ...), like all images below
    high: Tensor
    x: Tensor
    x_before: Tensor
    gradient: Tensor
    loss: Tensor  # (n,)
    broken: Tensor  # (n,) bool, by the latest logits
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor  # (n,)
    step: Tensor  # (n, 1, ...)
    rises: Tensor  # (n,) steps since the last checkpoint at which the loss rose
    improved: Tensor  # (n,) bool: the best loss rose since the last checkpoint
    halved: Tensor  # (n,) bool: the step was halved at the last checkpoint

    @classmethod
    def from_start(
        cls,
        model: nn.Module,
        start: Tensor,
        y: Tensor,
        low: Tensor,
        high: Tensor,
        *,
        step: float,
        draws: int,
        goal: AttackGoal,
    ) -> "_ApgdState":
        loss, gradient, logits = loss_gradient(model, start, y, draws=draws, goal=goal)
        return cls(
            y=y,
            low=low,
            high=high,
            x=start,
            x_before=start,
            gradient=gradient,
            loss=loss,
            broken=logits.mean(0).argmax(-1) != y,
            best=start,
            best_gradient=gradient,
            best_loss=loss,
            step=start.new_full((len(y), *[1] * (start.dim() - 1)), step),
            rises=torch.zeros_like(y),
            improved=torch.zeros_like(y, dtype=torch.bool),
            halved=torch.ones_like(y, dtype=torch.bool),  # no halving for want of improvement at the first checkpoint
        )

    def __getitem__(self, rows: Tensor) -> "_ApgdState":
        return _ApgdState(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _run_apgd(model: nn.Module, state: _ApgdState, *, steps: int, draws: int, goal: AttackGoal, stop: bool) -> Tensor:
    """Return the best iterates of one run, or with `stop` the first misclassified one of each image that has one."""
    random = is_random(model)
    checkpoints = _list_checkpoints(steps)
    result, rows = state.x.clone(), torch.arange(len(state.y), device=state.y.device)
    since = 0
    for t in range(steps + 1):
        if t:
            _take_step(model, state, draws=draws, goal=goal, momentum=t > 1)
            since += 1
        if stop and bool(state.broken.any()):  # before a checkpoint may put another iterate in this one's place
            result[rows[state.broken]] = state.x[state.broken]
            rows, state = rows[~state.broken], state[~state.broken]
            if not len(rows):
                return result
        if t in checkpoints:
            if random:
                better, state.best_loss = compare_candidates(
                    model, state.y, state.x, state.best, draws=draws, goal=goal
                )
                _update_best(state, better)
            _adapt_step_sizes(state, since)
            since = 0
    if random:
        _update_best(state, compare_candidates(model, state.y, state.x, state.best, draws=draws, goal=goal)[0])
    result[rows] = state.best
    return result


def _take_step(model: nn.Module, state: _ApgdState, *, draws: int, goal: AttackGoal, momentum: bool) -> None:
    """Take one step for every image, and record its best iterate."""
    x, low, high = state.x, state.low, state.high
    new = (x + state.step * state.gradient.sign()).clamp_(low, high)
    if momentum:
        new = (x + _ALPHA * (new - x) + (1 - _ALPHA) * (x - state.x_before)).clamp_(low, high)
    state.x_before, state.x = x, new
    loss, state.gradient, logits = loss_gradient(model, new, state.y, draws=draws, goal=goal)
    state.broken = logits.mean(0).argmax(-1) != state.y
    state.rises = state.rises + (loss > state.loss)
    state.loss = loss
    better = loss > state.best_loss
    state.improved = state.improved | better
    state.best_loss = torch.where(better, loss, state.best_loss)
    _update_best(state, better)


def _update_best(state: _ApgdState, chosen: Tensor) -> None:
    """Make the latest iterate of the chosen images (n,) their best."""
    chosen = _broadcast_per_image(chosen, state.x)
    state.best = torch.where(chosen, state.x, state.best)
    state.best_gradient = torch.where(chosen, state.gradient, state.best_gradient)


def _adapt_step_sizes(state: _ApgdState, since: int) -> None:
    """Halve the step and return to the best iterate where the last `since` steps achieved little."""
    # The paper's condition 1 has "<"; the authors' code, followed here, has "<=".
    halve = (state.rises <= _RHO * since) | ~(state.halved | state.improved)
    where = _broadcast_per_image(halve, state.x)
    state.step = torch.where(where, state.step / 2, state.step)
    state.x = torch.where(where, state.best, state.x)
    state.gradient = torch.where(where, state.best_gradient, state.gradient)
    state.rises = torch.zeros_like(state.rises)
    state.improved = torch.zeros_like(state.improved)
    state.halved = halve


def _list_checkpoints(steps: int) -> set[int]:
    """Return the steps after which step sizes adapt: at first 22 % of all steps apart, later less, at least 6 %.

    Examples:
        >>> sorted(_list_checkpoints(100))
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    distance, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found: set[int] = set()
    at = distance
    while at <= steps:
        found.add(at)
        distance = max(distance - less, least)
        at += distance
    return found


def _broadcast_per_image(flags: Tensor, like: Tensor) -> Tensor:
    """Return flags (n,) in a shape that broadcasts over images (n, ...)."""
    return flags.view(-1, *[1] * (like.dim() - 1))
