"""SmoothGrad: saliency as squared gradients of a score, averaged over noisy copies of the image."""

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
    """Return saliency maps of a batch of images, each for one class.

    M(x) = 1/n sum_i 1/K sum_k sum_channels (d y_c(x + N(0, sigma^2)_i; noise_k) / dx)^2

    y_c is the logit of class c. On a random network the squares are averaged over its noise as well as the input's, so
    `draws` determines the precision of the result, not its meaning; n passes of one draw each already use n draws. The
    noisy inputs are not clamped to [0, 1].

    The model is in eval mode meanwhile. Modes, `.grad`, `requires_grad` flags, torch's random state and the noise state
    are restored. `sampling(model, "off")` or `"frozen"` around the call selects that network.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes).
        x: images (B, C, H, W) in [0, 1].
        target: the class c of each image, (B,).
        sigma: standard deviation of the input's noise, in units of the image.
        samples: n, number of noisy copies of each image.
        draws: K, noise draws of the network for each copy; a deterministic network needs one.
        generator: source of the input's noise and the network's; it advances. The default is seed 0. Models with
            generators of equal seed get the same noisy copies.

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
    x, target = check_images(x, target, model)
    if x.dim() != 4:
        raise InputError(f"smoothgrad: got images of shape {tuple(x.shape)}, expected (B, C, H, W)")
    sigma, samples, draws = check_number("sigma", sigma), check_count("samples", samples), check_count("draws", draws)
    generator = generator or torch.Generator().manual_seed(0)
    key = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with prepare_for_attack(model), _restart_noise(model, key):
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        draws = draws if is_random(model) else 1
        for _ in range(samples):
            noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=total.dtype)
            copies = (x + sigma * noise.to(x.device)).to(x.dtype)
            for _ in range(draws):
                total += _score_gradient(model, copies, target).square_()
    return total.div_(samples * draws).sum(1).to(x.dtype)


def _score_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of each image's score, (B, C, H, W), in float32 or wider."""
    gradients: list[Tensor] = []
    for rows in split_batch(model, x, 1):
        part = x[rows].detach().requires_grad_()
        score = check_logits(model(part.clone()), target[rows]).gather(1, target[rows, None]).sum()
        gradient = torch.autograd.grad(score, part, allow_unused=True)[0] if score.requires_grad else None
        if gradient is None:
            raise InputError(
                "smoothgrad: the logits carry no gradient to the images; remove .detach(), rounding or no_grad from "
                "the model's forward pass"
            )
        gradients.append(gradient.to(torch.promote_types(x.dtype, torch.float32)))
    return torch.cat(gradients)


@contextmanager
def _restart_noise(model: nn.Module, key: int) -> Generator[None]:
    """Start the model's noise from a key, and restore its state afterwards."""
    with noise_kept(model):
        reset_noise(model, key)
        yield
