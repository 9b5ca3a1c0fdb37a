"""The released code's L-BFGS attack: torch's optimizer over a batch of images at once."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noiseprop.attacks.eot import prepare_for_attack
from noiseprop.evaluation.scoring import has_inference_noise
from noiseprop.noise.sampling import sampling

BATCH = 128


def released_lbfgs(
    model: nn.Module, x: Tensor, y: Tensor, *, step: float, steps: int, draws: int = 1, batch: int = BATCH
) -> Tensor:
    """Raise the mean loss of each `batch` images by one call of `torch.optim.LBFGS(lr=step, max_iter=steps)`.

    All images of a batch share one history and one step length, and stop together: at a gradient below 1e-7, a change
    below 1e-9, or after 1.25 `steps` evaluations. So the strength of the attack depends on the size of the batch. A
    random network draws new noise in each evaluation.

    Args:
        model: images (B, ...) in [0, 1] to logits (B, classes).
        x: images (B, ...) in [0, 1].
        y: true labels (B,).
        step: the optimizer's learning rate.
        steps: its most iterations.
        draws: noise draws to average the loss over; the released code has one.
        batch: images that share an optimizer.

    Returns:
        Adversarial images, like x, clamped to [0, 1] at the end.

    Source: lbfgs_attack in Cifar10/WhiteEval.py of the paper's released code, with Table 2's step and N for MNIST; its
    MNIST folder holds no attacks.
    """
    parts = zip(x.split(batch), y.split(batch), strict=True)
    averaged = sampling(model, draws=draws) if has_inference_noise(model) and draws > 1 else nullcontext()
    with prepare_for_attack(model), averaged:
        return torch.cat([_attack(model, part, labels, step, steps) for part, labels in parts])


def _attack(model: nn.Module, x: Tensor, y: Tensor, step: float, steps: int) -> Tensor:
    z = x.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], lr=step, max_iter=steps)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits: Tensor = model(z).flatten(0, -2)  # (draws * B, classes)
        loss = -cross_entropy(logits, y.repeat(len(logits) // len(y)))
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = z.detach()
    return torch.where(moved.isfinite(), moved, x).clamp(0, 1)  # the code would go on with NaN
