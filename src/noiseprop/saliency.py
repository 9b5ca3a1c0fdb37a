"""SmoothGrad: what a network looks at, as squared gradients of a score, averaged over noisy copies of the image."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import is_random, prepare_for_attack
from noiseprop.attacks.microbatch import split_batch
from noiseprop.attacks.validation import check_count, check_images, check_logits, check_number
from noiseprop.errors import InputError
from noiseprop.noise.stream import noise_kept, reset_noise


def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    sigma: float = 0.15,
    samples: int = 25,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Saliency maps of a batch of images, each for one class.

    M(x) = 1/n sum_i 1/K sum_k sum_channels (d y_c(x + N(0, sigma^2)_i; noise_k) / dx)^2

    y_c is the logit of class c. On a random network the squares are averaged over its noise as they are over the
    input's, so `draws` decides how exactly the same quantity is measured, not which one; n passes of one draw each are
    n draws already. The noisy inputs are not clamped to [0, 1].

    The model is in eval mode meanwhile and left as found: modes, `.grad`, `requires_grad` flags, torch's random state,
    and the place of its own noise. Inside `sampling(model, "off")` or `"frozen"` that network is looked at.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes).
        x: images (B, C, H, W) in [0, 1].
        target: the class c of each image, (B,).
        sigma: standard deviation of the input's noise, in units of the image.
        samples: n, noisy copies of each image.
        draws: K, draws of the network's own noise for each copy; a network without randomness needs one.
        generator: decides the input's noise and the network's; it moves on. Without one, all starts from seed 0. Models
            that get generators of one seed see the same noisy copies.

    Returns:
        Maps (B, H, W) of x's dtype, on its device; at least 0.

    Raises:
        InputError: for arguments out of range, images outside [0, 1], classes out of range, NaN or wrong-shaped logits.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
        >>> smoothgrad(model, torch.zeros(1, 1, 2, 2), torch.tensor([0]))
        tensor([[[ 1.,  4.],
                 [ 9., 16.]]])

    Source: Smilkov et al. 2017; squared and summed over channels as in Eq. 8 of Xiao, Zhang and Peng (2021).
    """
    if x.dim() != 4:
        raise InputError(f"smoothgrad: images of shape {tuple(x.shape)} came, expected (B, C, H, W)")
    x, target = check_images(x, target)
    sigma, samples, draws = check_number("sigma", sigma), check_count("samples", samples), check_count("draws", draws)
    generator = generator or torch.Generator().manual_seed(0)
    key = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with prepare_for_attack(model), _noise_from(model, key):
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        draws = draws if is_random(model) else 1
        for _ in range(samples):
            noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=total.dtype)
            copies = (x + sigma * noise.to(x.device)).to(x.dtype)
            for _ in range(draws):
                total += _gradient(model, copies, target).square_()
    return total.div_(samples * draws).sum(1).to(x.dtype)


def _gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient of each image's score, (B, C, H, W), in float32 or wider."""
    found: list[Tensor] = []
    for rows in split_batch(model, x, 1):
        part = x[rows].detach().requires_grad_()
        score = check_logits(model(part), target[rows]).gather(1, target[rows, None]).sum()
        gradient = torch.autograd.grad(score, part, allow_unused=True)[0] if score.requires_grad else None
        if gradient is None:
            raise InputError(
                "smoothgrad: the logits carry no gradient to the images; remove .detach(), rounding or no_grad from "
                "the model's forward pass"
            )
        found.append(gradient.to(torch.promote_types(x.dtype, torch.float32)))
    return torch.cat(found)


@contextmanager
def _noise_from(model: nn.Module, key: int) -> Generator[None]:
    """Start the model's noise from a key, and put it back to its place afterwards."""
    with noise_kept(model):
        reset_noise(model, key)
        yield
