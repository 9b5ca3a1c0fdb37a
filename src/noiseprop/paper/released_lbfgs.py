"""The released code's L-BFGS attack: torch's optimizer over a batch of images at once."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noiseprop.attacks.expectation import attacking
from noiseprop.data import Dataset
from noiseprop.evaluation.measure import Outcomes, device_of, judging, noise_is_on, noise_key, score
from noiseprop.evaluation.record import Evaluation, Measurement
from noiseprop.evaluation.settings import Settings
from noiseprop.evaluation.suite import attack_images
from noiseprop.noise.sampling import sampling
from noiseprop.noise.stream import reset_noise

BATCH = 128
LBFGS = ("lbfgs", "lbfgs-transfer")  # the conditions that are measured here


def released_lbfgs(model: nn.Module, x: Tensor, y: Tensor, *, step: float, steps: int, draws: int = 1) -> Tensor:
    """Raise the mean loss of each 128 images by one call of `torch.optim.LBFGS(lr=step, max_iter=steps)`.

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

    Returns:
        Adversarial images, like x, clamped to [0, 1] at the end.

    Source: lbfgs_attack in Cifar10/WhiteEval.py of the paper's released code, with Table 2's step and N for MNIST; its
    MNIST folder holds no attacks.
    """
    parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
    averaged = sampling(model, draws=draws) if noise_is_on(model) and draws > 1 else nullcontext()
    with attacking(model), averaged:
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


def with_released_lbfgs(
    evaluation: Evaluation, model: nn.Module, surrogate: nn.Module, test: Dataset, settings: Settings
) -> Evaluation:
    """An evaluation made without L-BFGS, completed by the released code's on the same images and in the same states."""
    s = settings
    x, y = attack_images(test, s.attack_images, device_of(model))
    found: list[Measurement] = []

    def measure(condition: str, x_adv: Tensor, draws: int) -> Outcomes:
        reset_noise(model, noise_key(s.seed, condition, draws, "score"))
        return score(model, [(x_adv, y)], draws=s.vote_draws, rows=s.batch_size)

    with judging(model), judging(surrogate):
        with sampling(model, "off"):
            x_adv = released_lbfgs(model, x, y, step=s.lbfgs_step, steps=s.lbfgs_steps)
        found.append(Measurement("lbfgs", "off", 0, 0, measure("lbfgs", x_adv, 0)["off"]))
        for draws in s.attack_draws if evaluation.noisy else ():
            reset_noise(model, noise_key(s.seed, "lbfgs", draws, "attack"))
            x_adv = released_lbfgs(model, x, y, step=s.lbfgs_step, steps=s.lbfgs_steps, draws=draws)
            for state, right in measure("lbfgs", x_adv, draws).items():
                if state != "off":
                    found.append(Measurement("lbfgs", state, draws, 0, right))
        x_adv = released_lbfgs(surrogate, x, y, step=s.lbfgs_step, steps=s.lbfgs_steps)
        for state, right in measure("lbfgs-transfer", x_adv, 0).items():
            found.append(Measurement("lbfgs-transfer", state, 0, 0, right))
    return replace(evaluation, settings=settings, measurements=(*evaluation.measurements, *found))
