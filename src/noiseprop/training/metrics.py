"""What is measured of a training, epoch by epoch."""

import math
from dataclasses import dataclass, fields
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noiseprop.data import Dataset, batches
from noiseprop.distributed import World
from noiseprop.errors import RunError
from noiseprop.noise.attach.add_noise import noise_layers
from noiseprop.training.recipes import Precision

_STATISTICS = ("mean", "std", "min", "max")  # of |sigma| over the neurons of a layer
_ALONE = World()


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl.

    Losses are mean cross-entropies in nats, accuracies fractions; those of the training images are taken as the
    training goes, before each update. `sigma` has, per noise layer, mean, std, min and max of |sigma| over its neurons.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    sigma: dict[str, dict[str, float]]
    seconds: float

    @staticmethod
    def from_json(line: dict[str, Any]) -> "Epoch":
        """The epoch of a line that `metrics.jsonl` holds.

        Raises:
            RunError: it has other fields than an epoch has, or of other types.
        """
        if line.keys() != {field.name for field in fields(Epoch)}:
            raise RunError(f"metrics.jsonl: epoch {line.get('epoch')} has the fields {', '.join(line)}, not an epoch's")
        sigma = line["sigma"]
        if not isinstance(sigma, dict) or any(
            not isinstance(layer, dict) or layer.keys() != set(_STATISTICS) for layer in sigma.values()
        ):
            raise RunError(f"metrics.jsonl: epoch {line['epoch']} does not tell {', '.join(_STATISTICS)} of each sigma")
        numbers = {key: value for key, value in line.items() if key != "sigma"}
        for name, value in (*numbers.items(), *(pair for layer in sigma.values() for pair in layer.items())):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise RunError(f"metrics.jsonl: epoch {line['epoch']} has {name} {value!r}, not a finite number")
        return Epoch(**line)


def sigma_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (of the neurons, not a sample's), minimum and maximum of |sigma| per noise layer."""
    statistics: dict[str, dict[str, float]] = {}
    for name, layer in noise_layers(model).items():
        size = layer.sigma.detach().abs().double()
        values = (size.mean(), size.std(correction=0), size.min(), size.max())
        statistics[name] = {key: float(value) for key, value in zip(_STATISTICS, values, strict=True)}
    return statistics


@torch.no_grad()
def loss_and_accuracy(
    model: nn.Module, dataset: Dataset, *, precision: Precision = "fp32", batch_size: int = 500, world: World = _ALONE
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in evaluation mode, with the noise that the model has at inference, one draw.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, classes); its mode is left as found.
        dataset: all of its images are used.
        precision: "bf16" computes under autocast.
        batch_size: images at once.
        world: processes that share the images and find the same figures; this one alone if omitted.

    Returns:
        Nats, and a fraction.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    with world.sharding(model) as own:
        for x, y in starmap(own, batches(dataset, batch_size, generator=None)):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits: Tensor = model(x.to(device).contiguous(memory_format=torch.channels_last))
            loss += functional.cross_entropy(logits.float(), y.to(device), reduction="sum")
            correct += (logits.argmax(1) == y.to(device)).sum()
    model.train(was_training)
    return float(world.total(loss)) / len(dataset), int(world.total(correct)) / len(dataset)
