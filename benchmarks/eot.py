"""What K draws a step cost: EOT-K over EOT-1 for PGD, here and in other tools. `python benchmarks/eot.py`.

Compared with EOTPGD of torchattacks and the expectation wrapper of foolbox, which run the whole network K times.
"""

from functools import partial

import torch

from measure import time_in_turn, compare_times, write
from noiseprop.attacks import pgd
from noiseprop.models.registry import build

EPS, STEP, STEPS = 8 / 255, 2 / 255, 2


def ours(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> object:
    """This library's PGD."""
    return pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS, draws=draws)


def torchattacks_pgd(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> object:
    """EOTPGD."""
    import torchattacks

    return torchattacks.EOTPGD(model, eps=EPS, alpha=STEP, steps=STEPS, eot_iter=draws, random_start=False)(x, y)


def foolbox_pgd(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> object:
    """LinfPGD inside the wrapper for expectations."""
    import foolbox

    wrapped = foolbox.models.ExpectationOverTransformationWrapper(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), n_steps=draws
    )
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=EPS)


def main() -> None:
    """Time every network and tool at K = 1 and K = 20."""
    torch.manual_seed(0)
    figures = {}
    for name, shape, batch in (
        ("CNN-MLPN", (1, 28, 28), 128),
        ("MLPN", (1, 28, 28), 128),
        ("ResNet18-MLPN", (3, 32, 32), 32),
    ):
        model = build(name).eval()
        x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
        for tool, attack in (("noiseprop", ours), ("torchattacks", torchattacks_pgd), ("foolbox", foolbox_pgd)):
            if tool != "noiseprop" and name == "ResNet18-MLPN":
                continue  # twenty whole passes a step tell nothing new, for many minutes
            ks = (1, 5, 20) if tool == "noiseprop" else (1, 20)
            runs = {str(k): partial(attack, model, x, y, k) for k in ks}
            times = time_in_turn(runs, warmup=1, rounds=10, most=60, seconds=40)
            figures[f"{name}, {tool}"] = {k: compare_times(times, k) for k in times}
            line = ", ".join(f"K={k}: {compare_times(times, k)['median']:.2f} x" for k in times)
            print(f"{name:14} {tool:13} {line}", flush=True)
    write("eot", "the same attack with one draw a step, by the same tool", figures)


if __name__ == "__main__":
    main()
