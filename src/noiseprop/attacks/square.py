"""Square attack: random search with square-shaped changes, from scores alone."""

import math

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import expected_loss, prepare_for_attack
from noiseprop.attacks.validation import check_count, check_images, check_number, linf_ball
from noiseprop.errors import InputError

# Fraction of pixels in a square, halved after these queries out of 10,000 (the authors' schedule)
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 1000,
    draws: int = 1,
    noise_aware: bool = False,
    initial_share: float = 0.8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Lower the margin of each image by random squares of height ±eps, keeping each change that helps.

    margin(x) = z_y - max_{c != y} z_c,    z = mean_k model(x; noise_k)

    The start has vertical stripes of ±eps. Each query sets one random square per image to x ± eps, with one sign per
    channel, and keeps it if the margin falls. The squares shrink over time.

    On a random network the margin of the incumbent is the lowest of many noisy estimates, so an attacker who is
    unaware of the noise soon rejects every change. An aware attacker (`noise_aware`) queries the incumbent again beside
    each candidate and compares the candidate with the mean of all its queries, at twice the cost.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes). No gradient is needed.
        x: images (B, C, H, W) in [0, 1].
        y: true labels (B,).
        eps: radius of the L-infinity ball, in input units.
        queries: number of candidates per image. Each costs `draws` passes, or twice as many if `noise_aware`.
        draws: K, passes of a random network that are averaged per query.
        noise_aware: compare with the mean over all queries of the incumbent instead of its luckiest one.
        initial_share: share of the pixels in the first squares, between 0 and 1.
        generator: source of the squares; it advances. Without one they come from a copy of torch's global random state.

    Returns:
        Adversarial images, like x.

    Raises:
        InputError: for arguments out of range, images that are not (B, C, H, W) or outside [0, 1], labels out of range,
            NaN or wrong-shaped logits.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
        >>> square(model, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), eps=0.25, queries=50)
        tensor([[[[0.2500, 0.2500],
                  [0.2500, 0.2500]]]])

    Source: Andriushchenko, Croce, Flammarion and Hein (2020), algorithm 1 with the L-infinity sampling of section 3 and
    the authors' schedule. An image is never dropped at its first misclassification.
    """
    x, y = check_images(x, y, model)
    eps, queries, draws = check_number("eps", eps), check_count("queries", queries), check_count("draws", draws)
    if x.dim() != 4:
        raise InputError(f"square: images have shape {tuple(x.shape)}, expected (B, C, H, W)")
    if not 0 < check_number("initial_share", initial_share) <= 1:
        raise InputError(f"square: initial_share is {initial_share!r}, expected a share of pixels in (0, 1]")
    generator = generator or torch.Generator().set_state(torch.get_rng_state())
    low, high = linf_ball(x, eps)
    with prepare_for_attack(model, x), torch.no_grad():
        stripes = _draw_signs(generator, len(x), x.shape[1], 1, x.shape[3]).to(x.device)
        best = torch.where(stripes.expand_as(x), high, low)
        total = compute_margin(model, best, y, draws=draws)  # (B,), summed over the queries of the incumbent
        count = torch.ones_like(total)
        for query in range(queries):
            side = _get_side(initial_share, query, queries, x.shape[2:])
            candidate = _change_square(best, low, high, side, generator)
            found = compute_margin(model, candidate, y, draws=draws)
            if noise_aware:
                total, count = total + compute_margin(model, best, y, draws=draws), count + 1
            better = found < total / count
            best = torch.where(better[:, None, None, None], candidate, best)
            total, count = torch.where(better, found, total), torch.where(better, torch.ones_like(count), count)
    return best


def compute_margin(model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 1) -> Tensor:
    """Return the margin (B,) of the mean logits over draws; it is negative where they miss the label.

    Call it inside `prepare_for_attack(model)`.
    """
    _, logits = expected_loss(model, x, y, draws=draws)
    mean = logits.mean(0)  # (B, classes)
    others = mean.scatter(1, y[:, None], -math.inf)
    return mean.gather(1, y[:, None])[:, 0] - others.max(1).values


def _get_side(initial_share: float, query: int, queries: int, size: torch.Size) -> int:
    """Return the side of the squares at a query, from 1 to the smaller side of the image."""
    progress = query / queries * 10_000
    share = initial_share / 2 ** sum(progress > limit for limit in _HALVINGS)
    return max(1, min(round(math.sqrt(share * size[0] * size[1])), *size))


def _change_square(best: Tensor, low: Tensor, high: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set one random square of each image to the corner of its ball, up or down for each channel."""
    batch, channels, height, width = best.shape
    top = torch.randint(height - side + 1, (batch, 1), generator=generator)
    left = torch.randint(width - side + 1, (batch, 1), generator=generator)
    up = _draw_signs(generator, batch, channels, 1, 1).to(best.device)
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= top) & (rows < top + side)  # (B, H)
    inside_columns = (columns >= left) & (columns < left + side)  # (B, W)
    inside = (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(best.device)
    return torch.where(inside, torch.where(up, high, low), best)


def _draw_signs(generator: torch.Generator, *shape: int) -> Tensor:
    """Return random booleans on the CPU, where the generator is."""
    return torch.randint(2, shape, generator=generator).bool()
