"""The suite's attacks with their settings bound, run over many images in pieces."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noiseprop.attacks.fgsm import fgsm
from noiseprop.attacks.lbfgs import lbfgs
from noiseprop.attacks.pgd import pgd
from noiseprop.distributed import world
from noiseprop.errors import InputError
from noiseprop.evaluation.settings import ATTACKS, Settings
from noiseprop.noise.stream import noise_of

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
    """Adversarial images (N, C, H, W), crafted `rows` // `draws` at a time on the noise that the model has now.

    The processes of a process group share the pieces; each has all images in the end.
    """
    here, x_adv = world(), torch.zeros_like(x)
    for piece in here.pieces(len(x), max(1, rows // draws)):
        with noise_of(model, piece.start):
            x_adv[piece] = attack(model, x[piece], y[piece], draws)
    return here.total(x_adv)
