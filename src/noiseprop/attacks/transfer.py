"""Transfer: attack a model through another one, without its gradients."""

from collections.abc import Callable
from typing import NamedTuple, cast

from torch import Tensor, nn

from noiseprop.attacks.eot import expected_loss, prepare_for_attack
from noiseprop.attacks.restarts import forbid_early_stop
from noiseprop.attacks.validation import check_count, check_images
from noiseprop.errors import InputError

# An attack with its settings: (model, x, y) to adversarial images like x.
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Transferred(NamedTuple):
    """Images crafted on a surrogate, and the logits of the model under attack for them."""

    x_adv: Tensor  # like x
    logits: Tensor  # (draws, B, classes)


def transfer(
    model: nn.Module, x: Tensor, y: Tensor, *, surrogate: nn.Module, attack: Attack, draws: int = 1
) -> Transferred:
    """Craft adversarial images on a surrogate and score them on the model: the black-box threat.

    The attack takes all its steps on the surrogate, also on images that are already misclassified there, because images
    that barely break the surrogate may not break the model. Both models are restored. The caller decides from the
    logits whether the attack succeeded.

    Args:
        model: the model under attack, images (B, ...) in [0, 1] to logits (B, classes); its gradients are not used.
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        surrogate: the model whose gradients are used.
        attack: any attack with its settings bound, such as `partial(fgsm, eps=0.1)`.
        draws: noise draws over which the model is scored; a deterministic model has only one.

    Returns:
        The crafted images, like x, and the model's logits for them (draws, B, classes).

    Raises:
        InputError: the attack stops when broken, returns anything but images like x, or raises an InputError.

    Examples:
        >>> import torch
        >>> from functools import partial
        >>> from noiseprop.attacks import fgsm
        >>> model, surrogate = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> found = transfer(model, x, y, surrogate=surrogate, attack=partial(fgsm, eps=0.1))
        >>> found.logits.shape
        torch.Size([1, 5, 3])

    Source: Papernot et al. 2017; section 4 of Xiao, Zhang and Peng (2021).
    """
    draws = check_count("draws", draws)
    x, y = check_images(x, y, model)
    with forbid_early_stop():
        x_adv = cast("object", attack(surrogate, x.clone(), y.clone()))
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        got = f"{x_adv.dtype} of shape {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise InputError(
            f"transfer: the attack returned {got}, expected images like its "
            f"input, {x.dtype} of shape {tuple(x.shape)}; check its return value"
        )
    x_adv, y = check_images(x_adv, y, model)
    with prepare_for_attack(model):
        return Transferred(x_adv, expected_loss(model, x_adv, y, draws=draws)[1])
