"""Time epochs of training on MNIST: `python benchmarks/train_mnist.py [NETWORK …]`, with MNIST in $NOISEPROP_DATA.

Claims, without noise, on 2 cores with AMX: an MLP epoch (50,000 digits, batch 128) takes at most 0.6 s, a CNN epoch at
most 11 s in fp32 and 7 s in bf16. The alternative is a plain loop with DataLoader, Adam and a mean loss per epoch.
Noisy variants are timed, too. Epochs of the contenders alternate, after a discarded warm-up epoch.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from measure import write_figures
from noiseprop.data import Split, load, split
from noiseprop.paper import build
from noiseprop.training import Recipe, train

NETWORKS: dict[str, tuple[str, str, float | None, int]] = {
    # name: (network, precision, claimed seconds per epoch, epochs)
    "MLP": ("MLP", "fp32", 0.6, 9),
    "MLPN": ("MLPN", "fp32", None, 9),
    "CNN fp32": ("CNN", "fp32", 11.0, 3),
    "CNN bf16": ("CNN", "bf16", 7.0, 3),
    "CNN-MLPN bf16": ("CNN-MLPN", "bf16", None, 3),
    "CNN-AN bf16": ("CNN-AN", "bf16", None, 3),
}


def make_noiseprop_epoch(digits: Split, network: str, precision: Any) -> Callable[[], float]:
    """Return an epoch of `train` without checkpoints; the time includes validation on 100 images."""
    model = build(network)
    recipe = Recipe(epochs=1, precision=precision)
    few = replace(digits, validation=digits.validation[:100])
    return lambda: train(model, few, recipe)[0].seconds


def make_plain_epoch(digits: Split, network: str) -> Callable[[], float]:
    """Return an epoch of a plain loop in fp32."""
    model = build(network)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    data = TensorDataset(digits.train.images.float() / 255, digits.train.labels)
    loader = DataLoader(data, batch_size=128, shuffle=True)

    def epoch() -> float:
        start, total = time.perf_counter(), 0.0
        for x, y in loader:
            loss = cross_entropy(model(x), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item()
        return time.perf_counter() - start

    return epoch


def main() -> None:
    """Time the networks that the command line names, or all."""
    torch.set_flush_denormal(True)  # for the plain loop; `train` sets it, too
    digits = split(load("mnist"))
    figures: dict[str, Any] = {}
    for name in [name for name in NETWORKS if not sys.argv[1:] or name in sys.argv[1:]]:
        network, precision, claim, epochs = NETWORKS[name]
        contenders = {"noiseprop": make_noiseprop_epoch(digits, network, precision)}
        if network in ("MLP", "CNN"):
            contenders["plain loop, fp32"] = make_plain_epoch(digits, network)
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for epoch in range(epochs + 1):
            for contender, run in contenders.items():
                seconds = run()
                if epoch:
                    times[contender].append(seconds)
        figures[name] = {"seconds": times, "claim": claim}
        medians = "  ".join(f"{contender} {statistics.median(t):.3f} s" for contender, t in times.items())
        print(f"{name:14} {medians}" + (f"  (claim: {claim} s)" if claim else ""), flush=True)
    write_figures("train-mnist", "a loop with DataLoader and Adam", figures)


if __name__ == "__main__":
    main()
