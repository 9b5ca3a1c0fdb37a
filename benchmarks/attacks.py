"""PGD-10 beside torchattacks and foolbox, in one run. `python benchmarks/attacks.py`.

Claims: on the paper's CNN at least as fast as the fastest of them for equal adversarial images; and at least twice as
fast for the robust accuracy of a weak deterministic model, where broken images may leave the batch.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from measure import time_in_turn, compare_times, write
from noiseprop.attacks import pgd
from noiseprop.data import batches, load, split
from noiseprop.models import cnn, mlp

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox 3.3.4 imports scipy.ndimage.filters
    import foolbox
    import torchattacks

EPS, STEP, STEPS = 25 / 255, 5 / 255, 10  # Table 2, MNIST
IMAGES = 500


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """A model trained on clean digits only, and so weak under attack."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(128):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def contenders(model: nn.Module, x: Tensor, y: Tensor, *, stop: bool) -> dict[str, Callable[[], Tensor]]:
    """Each library's PGD-10 from the images themselves; ours first, as the one that the others are compared with."""
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1))
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return {
        "noiseprop": lambda: pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS, stop_when_broken=stop),
        "torchattacks": lambda: torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(x, y),
        "foolbox": lambda: theirs.run(bounded, x, foolbox.criteria.Misclassification(y), epsilon=EPS),
    }


def compare(model: nn.Module, x: Tensor, y: Tensor, *, stop: bool) -> dict[str, object]:
    """Times over ours, and how far the results agree."""
    runs = contenders(model, x, y, stop=stop)
    times = time_in_turn(runs, warmup=1, rounds=10, most=60, seconds=120)
    made = {name: run() for name, run in runs.items()}
    with torch.no_grad():
        robust = {name: float((model(x_adv).argmax(1) == y).float().mean()) for name, x_adv in made.items()}
    figures: dict[str, object] = {"times over noiseprop": {name: compare_times(times, name) for name in times}}
    figures["robust accuracy"] = robust
    if not stop:
        ours = made.pop("noiseprop")
        apart = {name: float(((x_adv - ours).abs() > 1e-6).float().mean()) for name, x_adv in made.items()}
        figures["share of pixels other than ours"] = apart
    return figures


def main() -> None:
    """Time the CNN and the weaker MLP, for whole attacks and for robust accuracy."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    digits = split(load("mnist-5k"))
    train = next(batches(digits.train, len(digits.train), generator=None))
    x, y = next(batches(digits.test, IMAGES, generator=None))
    models = {"CNN": trained(cnn(), *train, epochs=2), "MLP": trained(mlp(), *train, epochs=15)}
    figures = {}
    for name, model in models.items():
        for stop, what in ((False, "equal images"), (True, "robust accuracy")):
            found = figures[f"{name}, {what}"] = compare(model, x, y, stop=stop)
            over = {rival: f"{r['median']:.2f}" for rival, r in found["times over noiseprop"].items()}
            print(f"{name}, {what}: times over noiseprop {over}; robust {found['robust accuracy']}", flush=True)
            if "share of pixels other than ours" in found:
                print(f"  share of pixels other than ours: {found['share of pixels other than ours']}", flush=True)
    write("attacks", "PGD-10 of torchattacks and foolbox on the same images", figures)


if __name__ == "__main__":
    main()
