"""Two L-BFGS attacks: the paper's, a fixed step up the loss, and Szegedy's, the nearest image of another class."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from noiseprop.attacks.eot import SCORE_DRAWS, expected_loss, loss_gradient, prepare_for_attack
from noiseprop.attacks.validation import check_count, check_images, check_number

# torch.optim.LBFGS remembers a pair (s, y) only where y.s is above this.
_CURVATURE = 1e-10
# Key of the noise that lbfgs_szegedy keeps fixed while it minimises; unlikely to be the seed of a model.
_FIXED_NOISE = 0x5EED_0F_12_1F65


def lbfgs(model: nn.Module, x: Tensor, y: Tensor, *, step: float, steps: int, draws: int = 1) -> Tensor:
    """Climb the expected loss by `steps` L-BFGS iterations of a fixed step, then clamp to [0, 1].

    z_{t+1} = z_t + step_t H_t grad mean_k CE(model(z_t; noise_k), y),   z_0 = x,   x_adv = clip(z_steps, 0, 1)

    H_t is the L-BFGS estimate of the inverse Hessian of minus the loss, from the whole history. step_t is `step`,
    except for the first, which is `step * min(1, 1/|gradient|_1)` as in torch. The method has no line search, no cap on
    evaluations, no bound on the distance from x, and no clamp before the end: the iterates z_t may leave [0, 1]. Every
    image has its own history, so its result does not depend on its batch. An image whose gradient is exactly zero does
    not move, and neither does one whose next iterate would be so far away that logits overflow (piecewise linear
    networks have no curvature there, so steps can grow without bound).

    Departures from the released code, which calls `torch.optim.LBFGS` once for a whole batch: one history per image and
    the sum of the losses rather than their mean, no early stop, no cap of 1.25 N evaluations.

    The model is attacked in eval mode with its current noise (see `attacks.eot`). Modes, `.grad`, `requires_grad`
    flags, torch's random state and the noise state are restored. The passes of an attack draw noise that no other pass
    draws, neither in training nor when the result is scored.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        step: step length, the learning rate of L-BFGS.
        steps: number of iterations; 2 * steps copies of x are held.
        draws: noise draws to average each gradient over (EOT); 1 sees a single draw per step.

    Returns:
        Adversarial images, like x, at no particular distance.

    Raises:
        InputError: for arguments out of range, images outside [0, 1], labels out of range, NaN or wrong-shaped logits.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> lbfgs(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), step=0.5, steps=2)
        tensor([[0.3265, 0.6735]])

    Source: section 4 of Xiao, Zhang and Peng (2021) and its released code; Nocedal and Wright 2006, algorithm 7.4.
    """
    x, y = check_images(x, y, model)
    step, steps, draws = check_number("step", step), check_count("steps", steps), check_count("draws", draws)
    with prepare_for_attack(model, x):
        z = x.flatten(1).clone()  # (B, n)
        furthest = math.sqrt(torch.finfo(z.dtype).max)
        move, before, history = torch.zeros_like(z), torch.zeros_like(z), _CurvaturePairs(z)
        for t in range(steps):
            descent = loss_gradient(model, z.view(x.shape), y, draws=draws).gradient.flatten(1)  # of minus the loss
            if t == 0:
                length = step * (1 / descent.abs().sum(1, keepdim=True)).clamp(max=1)  # (B, 1)
                move = descent * length
            else:
                history.add_pair(move, before - descent)
                move = history.apply_inverse_hessian(descent).mul_(step)
            moved = z + move
            z = torch.where(moved.abs().amax(1, keepdim=True) < furthest, moved, z)  # false for NaN too
            before = descent
        return z.clamp_(0, 1).view(x.shape)


class _CurvaturePairs:
    """Pairs (s, y) of L-BFGS for a batch of independent problems: changes of the point and of its gradient.

    A problem whose pair fails the curvature rule stores zeros in its place, which drop out of both loops exactly.
    """

    def __init__(self, like: Tensor) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s (B, n), y (B, n), 1/(y.s) (B, 1)
        self.scale = like.new_ones(len(like), 1)  # initial inverse Hessian, a multiple of 1

    def add_pair(self, s: Tensor, y: Tensor) -> None:
        """Store a pair for each problem in which y.s > 1e-10, the rule of torch.optim.LBFGS."""
        curvature = (y * s).sum(1, keepdim=True)  # (B, 1)
        good = curvature > _CURVATURE
        zero = torch.zeros((), dtype=s.dtype, device=s.device)
        s, y = torch.where(good, s, zero), torch.where(good, y, zero)
        self.scale = torch.where(good, curvature / (y * y).sum(1, keepdim=True), self.scale)
        self.pairs.append((s, y, torch.where(good, 1 / curvature, zero)))

    def apply_inverse_hessian(self, descent: Tensor) -> Tensor:
        """Return H times the direction of steepest descent (B, n) by the two-loop recursion."""
        q = descent.clone()
        weights: list[Tensor] = []
        for s, y, rho in reversed(self.pairs):
            weights.append((s * q).sum(1, keepdim=True) * rho)
            q -= weights[-1] * y
        r = q.mul_(self.scale)
        for (s, y, rho), weight in zip(self.pairs, reversed(weights), strict=True):
            r += s * (weight - (y * r).sum(1, keepdim=True) * rho)
        return r


def lbfgs_szegedy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    steps: int = 100,
    searches: int = 10,
    draws: int = 1,
) -> Tensor:
    """Find the nearest image in another class by L-BFGS-B: Szegedy et al.'s original attack, box-constrained.

    minimise over r   c |r|_2 + mean_k CE(model(x + r; noise_k), target)   subject to   0 <= x + r <= 1

    by SciPy's L-BFGS-B from r = 0, separately for each image, in a search over c: the larger c, the smaller r, until
    the minimiser no longer reaches the target class. `searches` values of c are tried, by factors of 10 until one
    succeeds and one fails, then by bisection of log c; the smallest r that reached the target is returned. (Szegedy et
    al. write that they look for the smallest c, but the smallest r belongs to the largest c that succeeds.)

    On a random network each minimisation keeps K draws of the noise fixed, because a line search needs a deterministic
    function; the mean of the logits over fresh draws decides whether it succeeded. The model is attacked in eval mode;
    modes, `.grad`, `requires_grad` flags, torch's random state and the noise state are restored.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        target: classes to reach (B,); None chooses the likeliest wrong class of each image. Images that are already in
            their target class are returned unchanged.
        steps: maximum number of iterations of each minimisation.
        searches: number of values of c to try.
        draws: noise draws to average over.

    Returns:
        Images (B, ...), like x: in the target class where one was found, otherwise the result for the smallest c.

    Raises:
        InputError: for arguments out of range, images outside [0, 1], labels out of range, NaN or wrong-shaped logits.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> lbfgs_szegedy(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), searches=20)
        tensor([[0.5000, 0.5000]])

    Source: Szegedy et al. 2014, section 4.1.
    """
    x, y = check_images(x, y, model)
    steps, draws = check_count("steps", steps), check_count("draws", draws)
    searches = check_count("searches", searches)
    with prepare_for_attack(model, x):
        x_adv = x.clone()
        logits = expected_loss(model, x, y, draws=SCORE_DRAWS)[1].mean(0)  # (B, classes)
        if target is None:
            target = logits.scatter(1, y[:, None], -math.inf).argmax(1)
        _, target = check_images(x, target, model)
        for i in (logits.argmax(1) != target).nonzero()[:, 0].tolist():
            x_adv[i] = _search_nearest(
                model, x[i : i + 1], target[i : i + 1], steps=steps, searches=searches, draws=draws
            )[0]
        return x_adv


def _search_nearest(model: nn.Module, x: Tensor, target: Tensor, *, steps: int, searches: int, draws: int) -> Tensor:
    """Search over c for one image (1, ...), and return the nearest image."""
    best, smallest = x, math.inf
    succeeded, failed, c = 0.0, math.inf, 1.0
    for _ in range(searches):
        x_adv = _minimise_distance(model, x, target, c=c, steps=steps, draws=draws)
        _, logits = expected_loss(model, x_adv, target, draws=SCORE_DRAWS)
        distance = float((x_adv - x).norm())
        if bool(logits.mean(0).argmax(1) == target):
            succeeded = c
            if distance < smallest:
                best, smallest = x_adv, distance
        else:
            failed = c
            if succeeded == 0:
                best = x_adv
        c = 10 * c if failed == math.inf else c / 10 if succeeded == 0 else math.sqrt(succeeded * failed)
    return best


def _minimise_distance(model: nn.Module, x: Tensor, target: Tensor, *, c: float, steps: int, draws: int) -> Tensor:
    """Return the image (1, ...) in [0, 1] that minimises c |r|_2 + expected loss towards the target, from r = 0."""

    def to_image(r: NDArray[np.float64]) -> Tensor:
        return (x.double() + torch.from_numpy(r).view(x.shape).to(x.device)).to(x.dtype).clamp_(0, 1)

    def loss_and_gradient(r: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        loss, gradient, _ = loss_gradient(model, to_image(r), target, draws=draws, key=_FIXED_NOISE)
        length = float(np.linalg.norm(r))
        pull = r * (c / length) if length > 0 else np.zeros_like(r)  # the norm has no slope at r = 0
        return c * length + float(loss), gradient.flatten().double().cpu().numpy() + pull

    flat = x.flatten().double().cpu().numpy()
    bounds = list(zip(-flat, 1 - flat, strict=True))
    # Below the rounding of the model's dtype a line search finds nothing but noise.
    options = {"maxiter": steps, "ftol": 10 * torch.finfo(x.dtype).eps}
    start = np.zeros_like(flat)
    result = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return to_image(result.x)
