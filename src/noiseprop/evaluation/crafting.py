"""The suite's attacks with their settings bound, run over many images in pieces."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noiseprop.attacks.fgsm import fgsm
from noiseprop.attacks.lbfgs import lbfgs
from noiseprop.attacks.pgd import pgd
from noiseprop.errors import InputError
from noiseprop.evaluation.measure import parts
from noiseprop.evaluation.settings import ATTACKS, Settings

Attack = Callable[[nn.Module, Tensor, Tensor, int], Tensor]  # model, x, y and draws to adversarial images


def attack_of(name: str, settings: Settings) -> Attack:
    """One of ATTACKS with its settings bound.

    Raises:
        InputError: there is no such attack.
    """
    match name:
        case "fgsm":
            return lambda model, x, y, draws: fgsm(model, x, y, eps=settings.fgsm_eps, draws=draws)
        case "lbfgs":
            return lambda model, x, y, draws: lbfgs(
                model, x, y, step=settings.lbfgs_step, steps=settings.lbfgs_steps, draws=draws
            )
        case "pgd":
            return lambda model, x, y, draws: pgd(
                model, x, y, eps=settings.pgd_eps, step=settings.pgd_step, steps=settings.pgd_steps, draws=draws
            )
        case _:
            raise InputError(f"evaluate: unknown attack {name!r}; choose one of {', '.join(ATTACKS)}.")


def craft(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, *, draws: int, rows: int) -> Tensor:
    """Adversarial images (N, C, H, W), crafted `rows` // `draws` at a time on the noise that the model has now."""
    return torch.cat([attack(model, part, labels, draws) for part, labels in parts(x, y, rows // draws)])
