"""L-BFGS with a fixed step on minus the cross-entropy, as the paper runs it, for every image by itself."""

import torch
from torch import Tensor, nn

from noiseprop.attacks.expectation import attacking, loss_gradient
from noiseprop.attacks.threat import check_count, check_images, check_number

# torch.optim.LBFGS remembers a pair (s, y) only where y.s is above this.
_CURVATURE = 1e-10


def lbfgs(model: nn.Module, x: Tensor, y: Tensor, *, step: float, steps: int, draws: int = 1) -> Tensor:
    """Climb the expected loss by `steps` L-BFGS iterations of a fixed step, then clamp to [0, 1].

    z_{t+1} = z_t + step_t H_t grad mean_k CE(model(z_t; noise_k), y),   z_0 = x,   x_adv = clip(z_steps, 0, 1)

    H_t is the L-BFGS estimate of the inverse Hessian of minus the loss, from the whole history; step_t is `step`, but
    for the first, which is `step * min(1, 1/|gradient|_1)` as in torch. There is no line search, no cap on evaluations,
    no bound on the distance from x, and no clamp on the way: the iterates z_t may leave [0, 1]. Every image has its own
    history, so its result does not depend on its batch. An image whose gradient is exactly zero stays where it is.

    Departures from the released code, which calls `torch.optim.LBFGS` once for a whole batch: one history per image and
    the sum of the losses rather than their mean, no early stop, no cap of 1.25 N evaluations.

    The model is attacked with the noise it has at the time (see `attacks.expectation`), otherwise in eval mode, and
    left as found: modes, `.grad`, `requires_grad` flags and torch's random state. A noisy model's own noise moves on by
    the passes made, so that whatever scores x_adv next draws noise that the attack has not seen.

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

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> lbfgs(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), step=0.5, steps=2)
        tensor([[0.3265, 0.6735]])

    Source: section 4 of Xiao, Zhang and Peng (2021) and its released code; Nocedal and Wright 2006, algorithm 7.4.
    """
    x, y = check_images(x, y)
    step, steps, draws = check_number("step", step), check_count("steps", steps), check_count("draws", draws)
    z = x.flatten(1).clone()  # (B, n)
    move, before, history = torch.zeros_like(z), torch.zeros_like(z), _History(z)
    with attacking(model):
        for t in range(steps):
            descent = loss_gradient(model, z.view(x.shape), y, draws=draws).gradient.flatten(1)  # of minus the loss
            if t == 0:
                length = step * (1 / descent.abs().sum(1, keepdim=True)).clamp(max=1)  # (B, 1)
                move = descent * length
            else:
                history.remember(move, before - descent)
                move = history.direction(descent).mul_(step)
            z += move
            before = descent
    return z.clamp_(0, 1).view(x.shape)


class _History:
    """The pairs (s, y) of L-BFGS for a batch of independent problems: changes of the point and of its gradient.

    A problem whose pair fails the curvature rule stores zeros in its place, which drop out of both loops exactly.
    """

    def __init__(self, like: Tensor) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s (B, n), y (B, n), 1/(y.s) (B, 1)
        self.scale = like.new_ones(len(like), 1)  # the first guess at the inverse Hessian, a multiple of 1

    def remember(self, s: Tensor, y: Tensor) -> None:
        """Store a pair for each problem in which y.s > 1e-10, the rule of torch.optim.LBFGS."""
        curvature = (y * s).sum(1, keepdim=True)  # (B, 1)
        good = curvature > _CURVATURE
        zero = torch.zeros((), dtype=s.dtype, device=s.device)
        s, y = torch.where(good, s, zero), torch.where(good, y, zero)
        self.scale = torch.where(good, curvature / (y * y).sum(1, keepdim=True), self.scale)
        self.pairs.append((s, y, torch.where(good, 1 / curvature, zero)))

    def direction(self, descent: Tensor) -> Tensor:
        """H times the direction of steepest descent (B, n): the two-loop recursion."""
        q = descent.clone()
        weights: list[Tensor] = []
        for s, y, rho in reversed(self.pairs):
            weights.append((s * q).sum(1, keepdim=True) * rho)
            q -= weights[-1] * y
        r = q.mul_(self.scale)
        for (s, y, rho), weight in zip(self.pairs, reversed(weights), strict=True):
            r += s * (weight - (y * r).sum(1, keepdim=True) * rho)
        return r
