"""SPSA: projected gradient descent with gradients estimated from queries, averaged over random directions."""

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.attacks.square import compute_margin
from noiseprop.attacks.validation import check_count, check_images, check_number, linf_ball
from noiseprop.errors import InputError


def spsa(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    directions: int = 32,
    width: float = 0.01,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Descend the margin by signed steps along an estimated gradient.

    g       = mean_i (m(x_t + width v_i) - m(x_t - width v_i)) / (2 width) v_i,    v_i in {-1, 1}^d
    x_{t+1} = P(x_t - step * sign(g))

    with m the margin of the mean logits over `draws` passes. Every query of a random network meets fresh noise, which
    the mean over directions reduces like the mean over draws, so this attack averages over noise at no extra cost. It
    makes 2 * steps * directions queries per image.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes). No gradient is needed.
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        eps: radius of the L-infinity ball, in input units.
        step: step size, in input units.
        steps: number of steps.
        directions: random directions per step.
        width: distance of the two queries of a direction from the iterate, in input units. The larger it is, the less
            the noise of the network matters, and the less local is the estimate.
        draws: K, passes that are averaged per query.
        generator: source of the directions; it advances. Without one they come from a copy of torch's global random
            state.

    Returns:
        Adversarial images, like x: the last iterate.

    Raises:
        InputError: for arguments out of range, images outside [0, 1], labels out of range, NaN or wrong-shaped logits.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> spsa(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), eps=0.5, step=0.25, steps=4, directions=64)
        tensor([[0.2500, 0.7500]])

    Source: Spall (1992); Uesato, O'Donoghue, van den Oord and Kohli (2018), algorithm 1. Departure: signed steps as in
    PGD instead of Adam.
    """
    x, y = check_images(x, y, model)
    eps, step, width = check_number("eps", eps), check_number("step", step), check_number("width", width)
    steps, draws = check_count("steps", steps), check_count("draws", draws)
    directions = check_count("directions", directions)
    if width == 0:
        raise InputError("spsa: width is 0, expected a positive distance in input units, such as 0.01")
    generator = generator or torch.Generator().set_state(torch.get_rng_state())
    low, high = linf_ball(x, eps)
    x_adv = x.clone()
    with prepare_for_attack(model, x), torch.no_grad():
        for _ in range(steps):
            gradient = torch.zeros_like(x_adv)
            for _ in range(directions):
                direction = (2 * torch.randint(2, x.shape, generator=generator) - 1).to(x)
                change = compute_margin(model, (x_adv + width * direction).clamp_(0, 1), y, draws=draws)
                change = change - compute_margin(model, (x_adv - width * direction).clamp_(0, 1), y, draws=draws)
                gradient.addcmul_(direction, change.to(x.dtype).view(-1, *[1] * (x.dim() - 1)))
            x_adv = x_adv.sub_(gradient.sign_(), alpha=step).clamp_(low, high)
    return x_adv
