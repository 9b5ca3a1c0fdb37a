"""Attacks of the evaluation with bound settings, run over many images in pieces."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noiseprop.attacks.fgsm import fgsm
from noiseprop.attacks.lbfgs import lbfgs
from noiseprop.attacks.pgd import pgd
from noiseprop.distributed import get_world
from noiseprop.errors import InputError
from noiseprop.evaluation.settings import ATTACKS, Settings
from noiseprop.noise.stream import noise_of

SuiteAttack = Callable[[nn.Module, Tensor, Tensor, int], Tensor]  # model, x, y and draws to adversarial images


def bind_attack(name: str, settings: Settings) -> SuiteAttack:
    """Return one of ATTACKS with its settings bound.

    Raises:
        InputError: the attack is unknown.
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


def craft_images(attack: SuiteAttack, model: nn.Module, x: Tensor, y: Tensor, *, draws: int, rows: int) -> Tensor:
    """Return adversarial images (N, C, H, W), crafted `rows` // `draws` at a time with the model's current noise.

    The processes of a process group share the pieces; each of them returns all images.
    """
    processes, x_adv = get_world(), torch.zeros_like(x)
    for piece in processes.deal_pieces(len(x), max(1, rows // draws)):
        with noise_of(model, piece.start):
            x_adv[piece] = attack(model, x[piece], y[piece], draws)
    return processes.sum_over_processes(x_adv)
