"""Fast gradient sign method: one step of size eps."""

import torch
from torch import Tensor, nn

from noiseprop.attacks.eot import loss_gradient, prepare_for_attack
from noiseprop.attacks.validation import check_count, check_images, check_number, linf_ball


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, draws: int = 1) -> Tensor:
    """Move every pixel by eps in the direction that raises the expected loss, within [0, 1].

    x_adv = clip(x + eps * sign(grad_x mean_k CE(model(x; noise_k), y)), 0, 1)

    The model is attacked in eval mode with its current noise (see `attacks.eot`). Modes, `.grad`, `requires_grad`
    flags, torch's random state and the noise state are restored. The passes of an attack draw noise that no other pass
    draws, neither in training nor when the result is scored.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        eps: size of the step in input units, at least 0.
        draws: noise draws to average the gradient over (EOT); 1 sees a single draw.

    Returns:
        Adversarial images, like x.

    Raises:
        InputError: for eps < 0, images outside [0, 1], labels out of range, NaN or wrong-shaped logits.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> fgsm(model, torch.tensor([[0.75, 0.25]]), torch.tensor([0]), eps=0.5)
        tensor([[0.2500, 0.7500]])

    Source: Goodfellow, Shlens and Szegedy 2014, section 4.
    """
    x, y = check_images(x, y, model)
    eps, draws = check_number("eps", eps), check_count("draws", draws)
    with prepare_for_attack(model, x):
        gradient = loss_gradient(model, x, y, draws=draws).gradient
        low, high = linf_ball(x, eps)
        return torch.where(gradient > 0, high, torch.where(gradient < 0, low, x))
