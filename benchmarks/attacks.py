"""Compare PGD-10 with torchattacks and foolbox in one run: `python benchmarks/attacks.py`.

Claims: on the paper's CNN, noiseprop is at least as fast as the faster of the two for equal adversarial images. For the
robust accuracy of a weak deterministic model, where misclassified images may leave the batch, it is at least twice as
fast.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from measure import compare_times, time_in_turn, write_figures
from noiseprop.attacks import pgd
from noiseprop.data import batches, load, split
from noiseprop.models import cnn, mlp

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox 3.3.4 imports scipy.ndimage.filters
    import foolbox
    import torchattacks

EPS, STEP, STEPS = 25 / 255, 5 / 255, 10  # Table 2, MNIST
IMAGES = 500


def train_model(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Train a model on clean digits only, so that it is weak under attack."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(128):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def make_contenders(model: nn.Module, x: Tensor, y: Tensor, *, stop: bool) -> dict[str, Callable[[], Tensor]]:
    """Return PGD-10 of each library, started at the images; the times are relative to the first one, noiseprop."""
    bounded_model = foolbox.PyTorchModel(model, bounds=(0, 1))
    foolbox_attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return {
        "noiseprop": lambda: pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS, stop_when_broken=stop),
        "torchattacks": lambda: torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(x, y),
        "foolbox": lambda: foolbox_attack.run(bounded_model, x, foolbox.criteria.Misclassification(y), epsilon=EPS),
    }


def compare_tools(model: nn.Module, x: Tensor, y: Tensor, *, stop: bool) -> dict[str, object]:
    """Return the times relative to noiseprop, and the agreement of the results."""
    runs = make_contenders(model, x, y, stop=stop)
    times = time_in_turn(runs, warmup=1, rounds=10, most=60, seconds=120)
    images = {name: run() for name, run in runs.items()}
    with torch.no_grad():
        robust = {name: float((model(x_adv).argmax(1) == y).float().mean()) for name, x_adv in images.items()}
    figures: dict[str, object] = {"times over noiseprop": {name: compare_times(times, name) for name in times}}
    figures["robust accuracy"] = robust
    if not stop:
        ours = images.pop("noiseprop")
        difference = {name: float(((x_adv - ours).abs() > 1e-6).float().mean()) for name, x_adv in images.items()}
        figures["share of pixels other than ours"] = difference
    return figures


def main() -> None:
    """Time whole attacks and robust accuracy on the CNN and the weaker MLP."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    digits = split(load("mnist-5k"))
    train = next(batches(digits.train, len(digits.train), generator=None))
    x, y = next(batches(digits.test, IMAGES, generator=None))
    models = {"CNN": train_model(cnn(), *train, epochs=2), "MLP": train_model(mlp(), *train, epochs=15)}
    figures = {}
    for name, model in models.items():
        for stop, task in ((False, "equal images"), (True, "robust accuracy")):
            found = figures[f"{name}, {task}"] = compare_tools(model, x, y, stop=stop)
            over = {tool: f"{ratio['median']:.2f}" for tool, ratio in found["times over noiseprop"].items()}
            print(f"{name}, {task}: times over noiseprop {over}; robust {found['robust accuracy']}", flush=True)
            if "share of pixels other than ours" in found:
                print(f"  share of pixels other than ours: {found['share of pixels other than ours']}", flush=True)
    write_figures("attacks", "PGD-10 of torchattacks and foolbox on the same images", figures)


if __name__ == "__main__":
    main()
