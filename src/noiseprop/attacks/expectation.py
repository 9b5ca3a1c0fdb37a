"""The expected loss of a model and its gradient with respect to the images: the one place where EOT lives.

Every attack asks here for the gradient of

    L(x, y) = 1/K sum_k CE(model(x; noise_k), y)

over K independent noise draws, fresh for every image and every draw (expectation over transformation, Athalye et al.
2018), so that none can mistake one lucky draw for the network.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.attacks.threat import check_logits
from noiseprop.errors import InputError

# Draws that decide which of several candidates has the higher expected loss.
SCORE_DRAWS = 32


class LossGradient(NamedTuple):
    """The expected loss of each image, its gradient with respect to the image, and the logits behind it."""

    loss: Tensor  # (B,), float32 or wider
    gradient: Tensor  # like x
    logits: Tensor  # (K, B, classes)


def is_random(model: nn.Module) -> bool:
    """Whether the model's noise is on."""
    return any(type(module).__name__ == "NeuronNoise" for module in model.modules())


@contextmanager
def attacking(model: nn.Module) -> Generator[None]:
    """Hold a model as attacks need it and give it back as it was, also after an exception.

    Inside, every module but the noise layers is in eval mode (batch norm uses and keeps its running statistics,
    dropout is off), parameters need no gradient (so none is computed, and `.grad` is not touched), and gradients with
    respect to the images are recorded even under `torch.no_grad()` and `torch.inference_mode()`.
    """
    modules = [(module, module.training) for module in model.modules()]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module, _ in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module, training in modules:
            module.training = training


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 1) -> LossGradient:
    """The expected cross-entropy of each image and its gradient with respect to that image.

    The losses of the batch are summed, never averaged, so that an image's gradient does not depend on its batch.
    Call it inside `attacking(model)`.

    Args:
        model: images (B, ...) to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: labels (B,).
        draws: K, the number of noise draws to average over.

    Raises:
        InputError: if the model's logits are not finite or of another shape, y is out of range, or the logits do not
            depend on x in a differentiable way.
    """
    x = x.detach().requires_grad_()
    logits = _logits(model, x, y, draws)  # (K, B, classes)
    loss = _expected_cross_entropy(logits, y)
    gradient = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise InputError(
            "attacks: the logits carry no gradient to the images; remove .detach(), rounding or no_grad from the "
            "model's forward pass, or attack by transfer"
        )
    return LossGradient(loss.detach(), gradient, logits.detach())


@torch.no_grad()
def expected_loss(model: nn.Module, x: Tensor, y: Tensor, *, draws: int = 1) -> tuple[Tensor, Tensor]:
    """The expected cross-entropy (B,) of each image over fresh draws, and the logits (K, B, classes) behind it."""
    logits = _logits(model, x, y, draws)
    return _expected_cross_entropy(logits, y), logits


def _logits(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """Logits (K, B, classes): one ordinary pass where draws is 1, else K fresh draws of the noise."""
    if draws == 1:
        return check_logits(model(x), y)[None]
    from noiseprop.noise import sampling  # noise/ is being written

    with sampling(model, "fresh", draws=draws):
        return check_logits(model(x), y, draws)


def _expected_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over draws of the cross-entropy: (K, B, classes) and (B,) to (B,), in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # (K*B, classes)
    return functional.cross_entropy(wide, y.repeat(len(logits)), reduction="none").view(len(logits), -1).mean(0)
