"""Measure the cost of K draws per step of PGD, EOT-K over EOT-1: `python benchmarks/eot.py`.

The other tools are EOTPGD of torchattacks and the expectation wrapper of foolbox, which run the whole network K times.
"""

from functools import partial

import torch

from measure import compare_times, time_in_turn, write_figures
from noiseprop.attacks import pgd
from noiseprop.models.registry import build

EPS, STEP, STEPS = 8 / 255, 2 / 255, 2


def run_noiseprop(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> object:
    """Run PGD of noiseprop."""
    return pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS, draws=draws)


def run_torchattacks(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> object:
    """Run EOTPGD of torchattacks."""
    import torchattacks

    return torchattacks.EOTPGD(model, eps=EPS, alpha=STEP, steps=STEPS, eot_iter=draws, random_start=False)(x, y)


def run_foolbox(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> object:
    """Run LinfPGD of foolbox inside its wrapper for expectations."""
    import foolbox

    wrapped = foolbox.models.ExpectationOverTransformationWrapper(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), n_steps=draws
    )
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=EPS)


def main() -> None:
    """Time every network and tool at K = 1 and K = 20, and noiseprop also at K = 5."""
    torch.manual_seed(0)
    figures = {}
    for name, shape, batch in (
        ("CNN-MLPN", (1, 28, 28), 128),
        ("MLPN", (1, 28, 28), 128),
        ("ResNet18-MLPN", (3, 32, 32), 32),
    ):
        model = build(name).eval()
        x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
        for tool, attack in (
            ("noiseprop", run_noiseprop),
            ("torchattacks", run_torchattacks),
            ("foolbox", run_foolbox),
        ):
            if tool != "noiseprop" and name == "ResNet18-MLPN":
                continue  # would take many minutes, and costs 20 times as much by construction
            counts = (1, 5, 20) if tool == "noiseprop" else (1, 20)
            runs = {str(k): partial(attack, model, x, y, k) for k in counts}
            times = time_in_turn(runs, warmup=1, rounds=10, most=60, seconds=40)
            figures[f"{name}, {tool}"] = {k: compare_times(times, k) for k in times}
            line = ", ".join(f"K={k}: {compare_times(times, k)['median']:.2f} x" for k in times)
            print(f"{name:14} {tool:13} {line}", flush=True)
    write_figures("eot", "the same attack with one draw per step, by the same tool", figures)


if __name__ == "__main__":
    main()
